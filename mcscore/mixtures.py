r"""Mixtures: the data law ``p_0 = sum_i w_i N(m_i, C)`` in the coordinates of its frame.

``mixture(x, ...)`` checks the rows, fits the frame, and lets the kernel lay them out in blocks. The
result is a pytree of arrays: it crosses ``jit``, ``vmap`` and ``grad`` like any other argument, and
mixtures of equal shapes share one compiled program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mcscore import conditioning
from mcscore.calibration import calibrated
from mcscore.columns import on_device
from mcscore.draws import draw, pick_rows
from mcscore.frames import Affine, Identity  # noqa: F401 (doctests)
from mcscore.jet import Blocks, stream
from mcscore.kernels import Dirac, Isotropic, Kernel, Whitened  # noqa: F401 (doctests)
from mcscore.moments import variance, width
from mcscore.report import Report
from mcscore.selection import Auto, choose
from mcscore.shown import shapes
from mcscore.tables import as_table, as_weights, is_traced, is_zero, rounded_up, warn_of_units
from mcscore.ties import Dequantized, dequantized

BLOCK_ROWS = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """The data law, blocked. Build it with ``mixture``.

    Attributes:
        blocks: Rows, weights and kernels, in the coordinates of the frame.
        width: Reference width ``h`` of the kernel; 0 for the empirical measure.
        variance: Variance of the law, averaged over its coordinates.
        frame: Map between the user's columns and the blocks' coordinates.
        report: How the law was chosen; takes no part in equality or compilation.
    """

    blocks: Blocks
    width: Any
    variance: Any
    frame: Any
    report: Report = field(metadata={"static": True})
    __repr__ = shapes

    @property
    def dimension(self) -> int:
        """Number of columns ``d``."""
        return self.blocks.rows.shape[-1]

    @property
    def dtype(self) -> Any:
        """Precision of the law."""
        return self.blocks.rows.dtype

    def points(self) -> tuple[Float[Array, "n d"], Float[Array, "n"]]:
        """Return the centres ``m_i`` and log weights, padding (log weight ``-inf``) included."""
        rows, bases = self.blocks.rows, self.blocks.bases
        if bases is not None:
            rows = jnp.einsum("krd,ked->kre", rows, bases, precision="highest")
        points = rows + self.blocks.centres[:, None]
        return points.reshape(-1, self.dimension), self.blocks.log_weights.reshape(-1)

    def subsample(self, key: Array, rows: int) -> Mixture:
        """Return the law of ``rows`` data drawn with replacement, by weight: the paper's mini-batch.

        Safe under ``jit`` and ``vmap`` (``rows`` is static). O(n + rows d) time.

        >>> law = mixture(np.eye(3), kernel=Dirac())
        >>> law.subsample(jax.random.key(0), 10).blocks.rows.shape
        (1, 10, 3)
        """
        if rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        if self.blocks.bases is not None:
            raise ValueError(
                "subsample: expected an isotropic kernel, got one with local covariances"
            )
        block, row = pick_rows(key, self.blocks.log_weights, rows)
        points = self.blocks.centres[block] + self.blocks.rows[block, row]

        count = -(-rows // BLOCK_ROWS)  # unsorted points: equal blocks in the order of the draw
        size = -(-rows // count)
        pad = count * size - rows
        points = jnp.concatenate([points, jnp.broadcast_to(points[:1], (pad, self.dimension))])
        points = points.reshape(count, size, self.dimension)
        equal = -jnp.log(jnp.asarray(rows, self.dtype))
        log_weights = jnp.where(jnp.arange(count * size) < rows, equal, -jnp.inf)
        centres = points.mean(1)
        blocks = Blocks(
            points - centres[:, None],
            log_weights.reshape(count, size),
            centres,
            None,
            jnp.broadcast_to(self.blocks.variances[:1], centres.shape),
        )
        return replace(self, blocks=blocks)

    def marginal(self, columns: Sequence[int] | np.ndarray) -> Mixture:
        """Return the law of some columns, in their order, exactly: a mixture like any other.

        Raises:
            ValueError: If ``columns`` are not distinct columns of the law.

        >>> mixture(np.eye(3), kernel=Isotropic(0.1)).marginal([2, 0]).dimension
        2
        """
        frame, onto = self.frame.part(self._columns(columns))
        return self._derived(_marginal(self.blocks, jnp.asarray(onto, self.dtype)), frame)

    def condition(
        self, columns: Sequence[int] | np.ndarray, values: ArrayLike | Sequence[Any]
    ) -> Mixture:
        """Return the law of the other columns, given the values of some, exactly: again a mixture.

        Safe under ``jit``, ``vmap`` and ``grad`` with respect to ``values``; O(n d) time and memory for every
        condition. The joint log density is ``marginal(columns).log_prob(values)`` plus
        ``condition(columns, values).log_prob(others)``. Tied values (integers, atoms) are given as they
        are, though they had been spread over an interval.

        Args:
            columns: Indices of the given columns; at least one column must be left.
            values: Their values in the user's units, (len(columns),).

        Raises:
            ValueError: If ``columns`` are not distinct, not columns of the law or all of them, if ``values``
                are not as many finite numbers, or if the kernel is ``Dirac()``: of point masses, none
                lies at the values.

        >>> x = np.random.default_rng(0).multivariate_normal([0, 5], [[1, 0.9], [0.9, 1]], 2000)
        >>> law = mixture(x, kernel=Whitened(0.3), frame=Affine())
        >>> given = law.condition([0], [1.5])           # the second column where the first is 1.5
        >>> bool(abs(given.sample(jax.random.key(0), 5000).mean() - (5 + 0.9 * 1.5)) < 0.15)
        True
        """
        self.require_width("condition")
        columns = self._columns(columns)
        rest = [j for j in range(self.dimension) if j not in columns]
        if not rest:
            raise ValueError(f"columns: expected fewer than all {self.dimension}, to leave some")
        values = jnp.asarray(values, self.dtype)
        if values.shape != (len(columns),):
            raise ValueError(f"values: expected shape ({len(columns)},), got {values.shape}")
        if not is_traced(values) and not np.isfinite(np.asarray(values)).all():
            raise ValueError(f"values: expected finite numbers, got {values}")
        (given, along), (frame, onto) = self.frame.part(columns), self.frame.part(rest)
        onto, along = (jnp.asarray(matrix, self.dtype) for matrix in (onto, along))
        return self._derived(_conditional(self.blocks, onto, along, given, values), frame)

    def _columns(self, columns: Sequence[int] | np.ndarray) -> list[int]:
        found = [operator.index(j) for j in columns]
        known = set(found) & set(range(self.dimension))
        if not known or len(known) < len(found):
            raise ValueError(
                f"columns: expected distinct indices from 0 to {self.dimension - 1}, got {found}"
            )
        return found

    def _derived(self, law: tuple[Blocks, Array, Array], frame: Any) -> Mixture:
        """Return a mixture; what was measured of this one does not hold for it."""
        blocks = law[0].rows
        report = replace(
            self.report, columns=blocks.shape[-1], blocks=len(blocks), tied={}, curve=[],
            log_likelihood=None, memorisation=None,
        )  # fmt: skip
        return Mixture(*law, frame, report)

    def log_prob(self, x: ArrayLike) -> Float[Array, "b"]:
        """Return ``log p_0(x)`` in nats, ``x`` (b, d) and the density in the user's units.

        Outside ``jit`` the number of rows is rounded up for the computation, so that few programs are
        compiled; so it is in ``sample``.

        Raises:
            ValueError: If ``x`` has not the law's columns, or the kernel is ``Dirac()``, whose law has no
                density.

        >>> law = mixture([[0.0], [1.0]], kernel=Isotropic(1.0))
        >>> law.log_prob(jnp.zeros((1, 1))).shape
        (1,)
        """
        self.require_width("log_prob")
        return self._by_row(_log_prob, x)

    def require_width(self, what: str) -> None:
        """Raise ``ValueError`` if the law is known to be a sum of point masses."""
        if is_zero(self.width):
            raise ValueError(
                f"{what}: the empirical measure (kernel=Dirac()) is undefined without noise; "
                "use a kernel with a width, such as Isotropic(h), or a schedule with sigma(0) > 0"
            )

    def sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Return ``n`` exact, independent draws from the law, in the user's units, ties restored.

        Raises:
            ValueError: If ``n`` is negative.

        >>> mixture(np.eye(2), kernel=Isotropic(0.1)).sample(jax.random.key(0), 5).shape
        (5, 2)
        """
        if n < 0:
            raise ValueError(f"n: expected a number of samples, got {n}")
        return _sample(key, self, n if self._is_traced(key) else rounded_up(n))[:n]

    def _by_row(self, function: Callable[[Array, Mixture], Array], x: ArrayLike) -> Array:
        """Return ``function(x, self)``, (b,), for ``x`` (b, d)."""
        x = jnp.asarray(x, self.dtype)
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise ValueError(f"x: expected shape (b, {self.dimension}), got {x.shape}")
        more = 0 if self._is_traced(x) else rounded_up(len(x)) - len(x)
        return function(jnp.pad(x, ((0, more), (0, 0))), self)[: len(x)]

    def _is_traced(self, *values: Any) -> bool:
        return any(map(is_traced, (*values, *jax.tree.leaves(self))))

    def effective_sample_size(self, x: ArrayLike) -> Float[Array, "b"]:
        """Return ``1 / sum_i w_i(x)^2``: how many components share the density at ``x``, (b, d).

        The square of a Gaussian is a Gaussian of half the variance, so this is one more log density.
        """
        self.require_width("effective_sample_size")
        return self._by_row(_effective_sample_size, x)

    def summary(self, key: Array | None = None) -> Report:
        """Return the report, completed by the effective sample size at 200 draws."""
        if is_zero(self.width):
            return self.report
        draws = self.sample(jax.random.key(0) if key is None else key, 200)
        size = float(jnp.median(self.effective_sample_size(draws)))
        return replace(self.report, effective_sample_size=size)


@jax.jit
def _marginal(blocks: Blocks, onto: Array) -> tuple[Blocks, Array, Array]:
    return _with_moments(conditioning.marginal(blocks, onto))


@jax.jit
def _conditional(
    blocks: Blocks, onto: Array, along: Array, given: Any, values: Array
) -> tuple[Blocks, Array, Array]:
    at = given.forward(values[None])[0]
    return _with_moments(conditioning.conditional(blocks, onto, along, at))


def _with_moments(blocks: Blocks) -> tuple[Blocks, Array, Array]:
    return blocks, width(blocks, jnp), variance(blocks, jnp)


@jax.jit
def _log_prob(x: Array, law: Mixture) -> Array:
    log_p = stream(law.frame.forward(x), 1.0, 0.0, law.blocks, exact=True).log_p
    return log_p + law.frame.log_det(x)


@jax.jit
def _effective_sample_size(x: Array, law: Mixture) -> Array:
    blocks, y = law.blocks, law.frame.forward(x)
    log_volume = jnp.sum(jnp.log(4 * jnp.pi * blocks.variances), 1, keepdims=True) / 2
    squared = replace(
        blocks, log_weights=2 * blocks.log_weights - log_volume, variances=blocks.variances / 2
    )
    log_p, log_squares = (stream(y, 1.0, 0.0, part).log_p for part in (blocks, squared))
    return jnp.exp(2 * log_p - log_squares)


@partial(jax.jit, static_argnums=2)
def _sample(key: Array, law: Mixture, n: int) -> Array:
    return law.frame.restore(law.frame.inverse(draw(key, law.blocks, n)))


def mixture(
    x: Any,
    *,
    kernel: Kernel = Dirac(),
    weights: Any = None,
    frame: Any = None,
    block_rows: int = BLOCK_ROWS,
) -> Mixture:
    """Return the law of the rows of ``x``: one Gaussian (or point) per row.

    Host code, in float64; the result has the precision of ``x`` (float32 unless x64 is enabled).

    Args:
        x: Data, (n, d), anything NumPy can view as a table of finite numbers.
        kernel: Which Gaussian each row carries.
        weights: Non-negative weights of the rows, (n,); equal by default. Rows of weight 0 are left out.
        frame: Coordinates of the law (``Identity()``, ``Affine()``, ``Gaussianize()``), fitted to ``x``;
            by default what ``Auto()`` chooses, else the identity (columns of different units need more).
        block_rows: Rows evaluated together, at most.

    Raises:
        ValueError: If ``x`` is not a non-empty table of finite numbers, or ``weights`` do not fit; with
            ``Auto()`` also of fewer than five rows, or with a constant column.

    >>> law = mixture(np.eye(3), kernel=Isotropic(0.5))
    >>> law.dimension, law.blocks.rows.shape
    (3, (1, 3, 3))
    """
    table, dtype = as_table(x)
    weights = as_weights(weights, len(table))
    table, weights = table[weights > 0], weights[weights > 0]
    if frame is None and not isinstance(kernel, Auto | Dirac):
        warn_of_units(table)
    frames = kernel.frames if isinstance(kernel, Auto) and frame is None else (frame or Identity(),)
    spread = Dequantized(table, {}, None)
    if any(getattr(candidate, "dequantize", False) for candidate in frames):
        spread = dequantized(table)
        table = spread.x

    evidence: dict[str, Any] = {}
    chosen: Any = frames[0]
    if isinstance(kernel, Auto):
        chosen, kernel, fitted, blocks, evidence = choose(
            table, weights, kernel, frames, block_rows
        )
    else:
        kernel = kernel.by_rule(1 / np.sum(weights**2), table.shape[1])
        given = hasattr(chosen, "forward")
        fitted = chosen if given else chosen.fit(table, weights)
        blocks = kernel.lay_out(fitted.forward(table), weights, block_rows)
        fitted = fitted if given else calibrated(fitted, blocks, table, weights)
    kept = np.isfinite(blocks.log_weights)
    report = Report(
        rows=len(table),
        columns=table.shape[1],
        kernel=repr(kernel),
        frame=repr(chosen),
        blocks=len(kept),
        padding=1 - float(kept.mean()),
        tied=spread.share,
        **evidence,
    )
    if spread.ties is not None:
        fitted = replace(fitted, ties=spread.ties)
    law = on_device((blocks, width(blocks), variance(blocks)), dtype)
    return Mixture(*law, frame=fitted, report=report)
