r"""The mixture as a value: the data law ``p_0 = sum_i w_i N(m_i, C)`` in the coordinates of its frame.

A pytree of arrays: it crosses ``jit``, ``vmap`` and ``grad`` like any other argument, and mixtures of equal
shapes share one compiled program. Build one with ``mixture(x, ...)``.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mcscore._arrays import is_traced, is_zero, pytree, rounded_up, shapes, with_precision
from mcscore._numbers import as_numbers, column_numbers, points
from mcscore._optional import as_dataframe
from mcscore._printing import Told
from mcscore._validation import as_key, at_least
from mcscore.frames import AffineFrame, Identity
from mcscore.jet import Blocks, Evaluation, conditioning, log_density
from mcscore.jet.sampling import draw, pick_rows
from mcscore.mixtures.layout import mean_of, moments
from mcscore.mixtures.report import Report
from mcscore.parallel import over_queries, places_of, total

BLOCK_ROWS = 1024


@pytree(static=["evaluation"], dropped=["report", "columns"])
@dataclass(frozen=True, eq=False)
class Mixture(Told):
    """The data law, blocked. Build it with ``mixture``.

    Attributes:
        blocks: Rows, weights and kernels, in the coordinates of the frame.
        width: Reference width ``h`` of the kernel; 0 for the empirical measure.
        variance: Variance of the law, averaged over its coordinates.
        frame: Map between the user's columns and the blocks' coordinates.
        evaluation: How it is evaluated; part of what a compiled program belongs to.
        report: How the law was chosen. None for whatever a transformation returns.
        columns: The columns' names, if the table had any. None for whatever a transformation returns.
    """

    blocks: Blocks
    width: Any
    variance: Any
    frame: Any
    evaluation: Any = Evaluation()
    report: Report | None = field(default=None, repr=False)
    columns: tuple[str, ...] | None = field(default=None, repr=False)
    __repr__ = shapes

    def told(self) -> dict[str, str]:
        """Return what ``print`` shows: the report, if there is one."""
        return {} if self.report is None else self.report.told()

    @property
    def dimension(self) -> int:
        """Number of columns ``d``."""
        return self.blocks.rows.shape[-1]

    @property
    def dtype(self) -> Any:
        """Precision of the law; an error where it is double and JAX has been set to single since."""
        return with_precision("law", self.blocks.rows.dtype)

    def points(self) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
        """Return the centers ``m_i`` and log weights, padding (log weight ``-inf``) included."""
        rows, bases = self.blocks.rows, self.blocks.bases
        if bases is not None:
            rows = jnp.einsum("krd,ked->kre", rows, bases, precision="highest")
        points = rows + self.blocks.centers[:, None]
        return points.reshape(-1, self.dimension), self.blocks.log_weights.reshape(-1)

    def subsample(self, key: Array, rows: int) -> Mixture:
        """Return the law of ``rows`` data drawn with replacement, by weight: the paper's mini-batch.

        Safe under ``jit`` and ``vmap`` (``rows`` is static). O(n + rows d) time.

        >>> from mcscore import Dirac, mixture
        >>> law = mixture(np.eye(3), kernel=Dirac())
        >>> law.subsample(jax.random.key(0), 10).blocks.rows.shape
        (1, 10, 3)
        """
        at_least(1, rows=rows)
        rows = int(rows)
        if self.blocks.bases is not None:
            raise ValueError(
                "subsample: expected an isotropic kernel, got one with local covariances"
            )
        block, row = pick_rows(as_key(key), self.blocks.log_weights, rows)
        points = self.blocks.centers[block] + self.blocks.rows[block, row]

        count = -(-rows // BLOCK_ROWS)  # unsorted points: equal blocks in the order of the draw
        size = -(-rows // count)
        pad = count * size - rows
        points = jnp.concatenate([points, jnp.broadcast_to(points[:1], (pad, self.dimension))])
        points = points.reshape(count, size, self.dimension)
        equal = -jnp.log(jnp.asarray(rows, self.dtype))
        log_weights = jnp.where(jnp.arange(count * size) < rows, equal, -jnp.inf)
        centers = points.mean(1)
        blocks = Blocks(
            points - centers[:, None],
            log_weights.reshape(count, size),
            centers,
            None,
            jnp.broadcast_to(self.blocks.variances[:1], centers.shape),
        )
        evaluation = replace(self.evaluation, over=None)  # few rows: on every device
        return replace(self, blocks=blocks, evaluation=evaluation, report=None)

    def marginal(self, columns: Sequence[int | str] | np.ndarray) -> Mixture:
        """Return the law of some columns, in their order, exactly: a mixture like any other.

        Args:
            columns: Their indices, or names where the law has any.

        Raises ``ValueError`` if they are not distinct columns of the law.

        >>> from mcscore import Isotropic, mixture
        >>> mixture(np.eye(3), kernel=Isotropic(0.1)).marginal([2, 0]).dimension
        2
        """
        found = column_numbers(columns, self.dimension, self.columns)
        frame, onto = self.frame.part(found, self.dimension)
        law = _marginal(self.blocks, jnp.asarray(onto, self.dtype))
        return self._derived(law, frame, found)

    def condition(self, columns: Any, values: ArrayLike | Sequence[Any] = ()) -> Mixture:
        """Return the law of the other columns, given the values of some, exactly: again a mixture.

        Safe under ``jit``, ``vmap`` and ``grad`` with respect to ``values``; O(n d) time and memory for every
        condition. Tied values (integers, atoms) are given as they are. Where places in their intervals
        count (``frames.OpenedFrame``), the law is the mean over sixteen of them: an approximation.

        Args:
            columns: Indices or names, at least one column being left, or these with values: ``{"age": 40}``.
            values: Their values in the user's units, (len(columns),).

        Raises:
            ValueError: If ``columns`` are not distinct, not columns of the law or all of them, if ``values``
                are not as many finite numbers, or if the kernel is ``Dirac()``: of point masses, none
                lies at the values.

        >>> from mcscore import Affine, Whitened, mixture
        >>> x = np.random.default_rng(0).multivariate_normal([0, 5], [[1, 0.9], [0.9, 1]], 2000)
        >>> law = mixture(x, kernel=Whitened(0.3), frame=Affine())
        >>> given = law.condition([0], [1.5])           # the second column where the first is 1.5
        >>> bool(abs(given.sample(jax.random.key(0), 5000).mean() - (5 + 0.9 * 1.5)) < 0.15)
        True
        """
        self.require_width("condition")
        if isinstance(columns, Mapping):
            columns, values = list(columns), list(columns.values())
        columns = column_numbers(columns, self.dimension, self.columns)
        rest = [j for j in range(self.dimension) if j not in columns]
        if not rest:
            raise ValueError(f"columns: expected fewer than all {self.dimension}, to leave some")
        found = as_numbers(values, self.dtype, "values")
        if found.shape != (len(columns),):
            raise ValueError(f"values: expected shape ({len(columns)},), got {found.shape}")
        if not is_traced(found):
            if not np.isfinite(np.asarray(found)).all():
                raise ValueError(f"values: expected finite numbers, got {found}")
            found = np.asarray(values, np.float64)
        d = self.dimension
        (given, along), (frame, onto) = self.frame.part(columns, d), self.frame.part(rest, d)
        found = jnp.asarray(found, self.dtype) if self._is_traced() else found
        places, gains = given.places(found[None])
        if not is_traced(gains) and np.isneginf(np.asarray(gains)).all():
            raise ValueError(f"values: {np.asarray(found)} lies outside the bounds of the columns")
        at = (jnp.asarray(a[:, 0], self.dtype) for a in (places, gains))
        onto, along = (jnp.asarray(matrix, self.dtype) for matrix in (onto, along))
        law = _conditional(self.blocks, onto, along, *at)
        if not is_traced(law[2]) and not np.isfinite(law[2]):
            raise ValueError(
                f"values: {np.asarray(values)} lies too far outside the data for {self.dtype}"
            )
        return self._derived(law, frame, rest)

    def observe(self, matrix: Any, values: Any, covariance: Any) -> Mixture:
        """Return the law given an observation ``values = matrix @ x + noise``, exactly: again a mixture.

        The Kalman update of every component, and its weight by the density of what was observed. Safe under
        ``jit`` and ``grad`` with respect to ``values``.

        Args:
            matrix: Which linear functions of the columns, in the user's units, were observed, (m, d).
            values: What was observed, (m,).
            covariance: That of the Gaussian noise, (m, m), positive definite; a number for equal variances.

        Raises:
            ValueError: If shapes do not fit, or the frame is not affine: in others an observation is not
                linear.

        >>> from mcscore import Isotropic, mixture
        >>> law = mixture([[0.0, 0.0]], kernel=Isotropic(1.0))
        >>> law.observe([[1.0, 0.0]], [2.0], 1.0).points()[0]
        Array([[1., 0.]], dtype=float...)
        """
        if not isinstance(self.frame, Identity | AffineFrame):
            raise ValueError(
                "observe: expected a law in an affine frame (mcs.Affine()), without bounds or ties, got "
                f"{type(self.frame).__name__}"
            )
        traced = self._is_traced(matrix, values, covariance)
        library: Any = jnp if traced else np  # in float64: the frame's shift may be large
        kind = self.dtype if traced else np.float64
        given = dict(matrix=matrix, values=values, covariance=covariance).items()
        matrix, values, noise = (library.asarray(as_numbers(a, kind, name)) for name, a in given)
        m, d = len(values) if values.ndim == 1 else 0, self.dimension
        if matrix.shape != (m, d) or m == 0:
            raise ValueError(
                f"matrix: expected shape (m, {d}) for values (m,), got {matrix.shape} and {values.shape}"
            )
        noise = noise * library.eye(m, dtype=kind) if noise.ndim == 0 else noise
        if noise.shape != (m, m):
            raise ValueError(
                f"covariance: expected shape ({m}, {m}) or a number, got {noise.shape}"
            )
        if not traced:
            for name, given in dict(matrix=matrix, values=values, covariance=noise).items():
                if not np.isfinite(given).all():
                    raise ValueError(f"{name}: expected finite numbers, got {given}")
            if not (np.allclose(noise, noise.T) and (np.linalg.eigvalsh(noise) > 0).all()):
                raise ValueError("covariance: expected a symmetric, positive definite matrix")
        shift = self.frame.inverse(library.zeros((1, d), kind))[0]
        back = self.frame.inverse(library.eye(d, dtype=kind)) - shift[None]
        along, seen = back @ matrix.T, values - matrix @ shift
        law = _observed(self.blocks, *(jnp.asarray(a, self.dtype) for a in (along, seen, noise)))
        if not traced and not np.isfinite(np.asarray(law[2])):
            raise ValueError(f"values: {values} lies too far outside the data for {self.dtype}")
        return self._derived(law, self.frame, list(range(d)))

    def _derived(self, law: tuple[Blocks, Array, Array], frame: Any, columns: list[int]) -> Mixture:
        """Return a mixture without a report: what was measured of this one does not hold for it."""
        names = self.columns and tuple(self.columns[j] for j in columns)
        return Mixture(*law, frame, self.evaluation, columns=names)

    def log_prob(self, x: Any, *, condition: Any = None) -> Float[Array, "b"]:
        """Return ``log p_0(x)`` in nats, ``x`` (b, d) or one point (d,), the density in the user's units.

        A DataFrame's columns are taken by their names, if the law has any. Where float32 cannot hold the
        values (a large offset), this is done in float64 on the host, as ``sample`` then returns NumPy's.

        Raises:
            ValueError: If ``x`` has not the law's columns, or the kernel is ``Dirac()``, whose law has no
                density; if a ``condition`` is given, which only a `ConditionalMixture` has.

        >>> from mcscore import Isotropic, mixture
        >>> law = mixture([[0.0], [1.0]], kernel=Isotropic(1.0))
        >>> law.log_prob(jnp.zeros((1, 1))).shape
        (1,)
        """
        self.conditions(condition)
        self.require_width("log_prob")
        if self._is_traced(x) or not self.is_coarse:
            return self._by_row(_log_prob, x)
        x = np.asarray(points(x, self.dimension, self.columns), np.float64)
        (y, gain), law = self.frame.places(x), replace(self, frame=Identity())
        log_p = jnp.stack([law._by_row(_log_prob, place) for place in y])
        return mean_of_places(log_p + gain)

    def conditions(self, condition: Any, n: int | None = None) -> None:
        """Raise ``ValueError`` if a condition is given: this law has none (see `ConditionalMixture`)."""
        if condition is not None:
            raise ValueError(
                "condition: this law has none; mcs.mixture(x, condition=c) makes one that has, and "
                "law.condition(columns, values) fixes some of its own columns"
            )

    @property
    def condition_dimension(self) -> int:
        """Number of columns of the condition: there is none."""
        return 0

    @property
    def condition_frame(self) -> Any:
        """The frame of conditions, of which there are none."""
        return Identity()

    @property
    def joint(self) -> Mixture:
        """The law of all columns: itself."""
        return self

    @property
    def condition_columns(self) -> None:
        """The names of the condition's columns, of which there are none."""
        return None

    def draw_conditions(self, key: Array, n: int, proposal: Any = None) -> None:
        """Return no conditions."""

    def queries(self, x: Array, conditions: Any) -> Array:
        """Return the queries of ``blocks`` for points in their coordinates: as they are."""
        return x

    def mean(self, conditions: Any = None) -> Float[Array, "1 d"]:
        """Return the law's mean, in the coordinates of ``blocks``."""
        return total(mean_of(self.blocks, jnp), self.evaluation.over)[None]

    def log_evidence(self, conditions: Any) -> float:
        """Return the log density of conditions, of which there are none."""
        return 0.0

    def require_width(self, what: str) -> None:
        """Raise ``ValueError`` if the law is known to be a sum of point masses."""
        if is_zero(self.width):
            raise ValueError(
                f"{what}: the empirical measure (kernel=Dirac()) is undefined without noise; "
                "use a kernel with a width, such as Isotropic(h), or a schedule with sigma(0) > 0"
            )

    def sample(self, key: Array, n: int, *, condition: Any = None, as_frame: bool = False) -> Any:
        """Return ``n`` exact, independent draws (n, d) from the law, in the user's units, ties restored.

        With ``as_frame`` they are a pandas DataFrame, columns named as in the table. ``ValueError`` if
        ``n`` is negative or a ``condition`` is given.

        >>> from mcscore import Isotropic, mixture
        >>> mixture(np.eye(2), kernel=Isotropic(0.1)).sample(jax.random.key(0), 5).shape
        (5, 2)
        """
        at_least(0, n=n)
        self.conditions(condition)
        n, key, _ = int(n), as_key(key), self.dtype  # or its error
        if self._is_traced(key):
            return _sample(key, self, n)
        if not self.is_coarse:
            x = _sample(key, self, rounded_up(n))[:n]
        else:
            y = _sample(key, replace(self, frame=Identity()), rounded_up(n))[:n]
            x = self.frame.restore(self.frame.inverse(np.asarray(y, np.float64)))
        return as_dataframe(x, self.columns) if as_frame else x

    @cached_property
    def is_coarse(self) -> bool:
        """Whether the law's precision is too coarse for its frame's columns, see ``Frame.is_coarse``."""
        if isinstance(self.frame, Identity):
            return False
        centers = np.asarray(self.blocks.centers, np.float64)  # under jit, too
        return self.frame.is_coarse(centers[:: max(1, len(centers) // 16)], self.dtype)

    def _by_row(self, function: Callable[[Array, Mixture], Array], x: Any) -> Array:
        """Return ``function(x, self)``, (b,), for ``x`` (b, d)."""
        x = jnp.asarray(points(x, self.dimension, self.columns), self.dtype)
        over = self.evaluation.over
        if (places := places_of(x, over)) is not None:
            return over_queries(function, (x,), (self,), over=over, places=places)
        more = 0 if self._is_traced(x) else rounded_up(len(x)) - len(x)
        return function(jnp.pad(x, ((0, more), (0, 0))), self)[: len(x)]

    def _is_traced(self, *values: Any) -> bool:
        return any(map(is_traced, (*values, *jax.tree.leaves(self))))

    def effective_sample_size(self, x: Any) -> Float[Array, "b"]:
        """Return ``1 / sum_i w_i(x)^2``: how many components share the density at ``x``, (b, d).

        The square of a Gaussian is a Gaussian of half the variance, so this is one more log density.
        """
        self.require_width("effective_sample_size")
        return self._by_row(_effective_sample_size, x)

    def save(self, path: str | os.PathLike) -> None:
        """Write the law to one safetensors file, moved into place when complete; ``mcs.load`` reads it."""
        import_module("mcscore.mixtures.files").save_law(self, path)  # which knows this class

    def summary(self) -> Report | None:
        """Return ``report``, by which name it is to be asked for."""
        warnings.warn("summary(): use the attribute report", DeprecationWarning, stacklevel=2)
        return self.report


@jax.jit
def _marginal(blocks: Blocks, onto: Array) -> tuple[Blocks, Array, Array]:
    return _with_moments(conditioning.marginal(blocks, onto))


@jax.jit
def _conditional(
    blocks: Blocks, onto: Array, along: Array, places: Array, gains: Array
) -> tuple[Blocks, Array, Array]:
    return _with_moments(conditioning.conditional(blocks, onto, along, places, gains))


@jax.jit
def _observed(
    blocks: Blocks, along: Array, values: Array, noise: Array
) -> tuple[Blocks, Array, Array]:
    return _with_moments(conditioning.observed(blocks, along, values, noise))


def _with_moments(blocks: Blocks) -> tuple[Blocks, Array, Array]:
    return blocks, *moments(blocks, jnp)


@jax.jit
def _log_prob(x: Array, law: Mixture) -> Array:
    y, gain = law.frame.places(x)
    flat = y.reshape(-1, y.shape[2])
    log_p = log_density(flat, 1.0, 0.0, law.blocks, evaluation=law.evaluation)
    return mean_of_places(log_p.reshape(gain.shape) + gain)


def mean_of_places(log_p: Float[Array, "p b"]) -> Float[Array, "b"]:
    """Return the log of the mean density over places; ``-inf`` where there is none, its gradient zero."""
    nowhere = jnp.isneginf(log_p).all(0)[None]  # outside of bounds: the gradient is zero, not NaN
    mean = jax.nn.logsumexp(jnp.where(nowhere, 0, log_p), 0) - math.log(len(log_p))
    return jnp.where(nowhere[0], -jnp.inf, mean)


@jax.jit
def _effective_sample_size(x: Array, law: Mixture) -> Array:
    y, quick = law.frame.forward(x), replace(law.evaluation, careful=False)
    return shared(law.blocks, y, log_density(y, 1.0, 0.0, law.blocks, evaluation=quick), quick)


def shared(blocks: Blocks, y: Array, log_p: Array, evaluation: Evaluation) -> Array:
    """Return ``1 / sum_i w_i(y)^2`` at coordinates ``y`` (b, d), where the log density is ``log_p``."""
    log_volume = jnp.sum(jnp.log(4 * jnp.pi * blocks.variances), 1, keepdims=True) / 2
    squared = replace(
        blocks, log_weights=2 * blocks.log_weights - log_volume, variances=blocks.variances / 2
    )
    return jnp.exp(2 * log_p - log_density(y, 1.0, 0.0, squared, evaluation=evaluation))


@partial(jax.jit, static_argnums=2)
def _sample(key: Array, law: Mixture, n: int) -> Array:
    return law.frame.restore(law.frame.inverse(draw(key, law.blocks, n)))
