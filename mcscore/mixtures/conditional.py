r"""The conditional law ``p(x | c)`` as a value: every query has its own condition, exactly.

A component of the joint law with mean ``(m_i, c_i)`` and covariance ``C`` becomes, given ``c``,

    weight  w_i N(c; c_i, C_cc)    mean  m_i + C_xc C_cc^-1 (c - c_i)    covariance  C_xx - C_xc C_cc^-1 C_cx.

Neither weight nor mean depends on the diffused ``x_t``'s time, so that queries ``(x_t, c)`` stream over the
rows as others do (``jet.divided``); no law per query is ever made. With ``C_xc = 0`` this is the
kernel-weighted conditional of arXiv 2410.03108.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import is_traced, on_device, pytree, rounded_up, shapes, with_precision
from mcscore._numbers import points
from mcscore._optional import as_dataframe
from mcscore._printing import Told
from mcscore._validation import as_key, at_least
from mcscore.jet import Blocks, Denoiser, Evaluation, divided, log_density, stream
from mcscore.jet.sampling import draw, draw_given
from mcscore.mixtures.report import Report
from mcscore.mixtures.value import Mixture, mean_of_places, shared
from mcscore.parallel import over_queries, places_of

Places = tuple[Array, Array]  # coordinates (p, b, d) and what a log density gains, (p, b)
FAR = -1e3  # log density of conditions in float32 coordinates, below which their digits are lost
FEW = 2.0  # components that share a condition's weight: fewer are too few to trust
BEYOND = 3.0  # nats below the least likely of the data's own conditions
RIDGE = 1e-9  # of the mean variance, added to all: what float32 calls dependent has a root too
CHUNK = 2**16  # draws at once
DRAWN = 2000  # from the law, to know its conditions and its spread


class Support(NamedTuple):
    """How well the data know conditions, one number each.

    Attributes:
        effective_sample_size: ``1 / sum_i w_i(c)^2``: how many components share the weight.
        outside: By how many nats a condition is less likely than the least likely of 2,000 draws of the
            law; 0 for one that is not.
    """

    effective_sample_size: Float[Array, "b"]
    outside: Float[Array, "b"]


@pytree(static=["evaluation"], dropped=["report"])
@dataclass(frozen=True, eq=False)
class ConditionalMixture(Told):
    """The law of some columns given the others. Build it with ``mixture(x, condition=c, ...)``.

    Attributes:
        blocks: The joint law, ready for queries with conditions (``jet.divided``).
        width: Reference width of the kernels of ``x`` given ``c``.
        variance: Variance of ``x`` given ``c``, averaged over coordinates and conditions.
        frame: Map between the user's columns ``x`` and the blocks' coordinates.
        joint: The law of ``(x, c)``.
        prior: The law of ``c``, its frame that of conditions.
        least: Log density, in the prior's coordinates, of the least likely of 2,000 of its draws.
        evaluation: How it is evaluated.
        report: How the law was chosen. None for whatever a transformation returns.
    """

    blocks: Blocks
    width: Any
    variance: Any
    frame: Any
    joint: Mixture
    prior: Mixture
    least: Any
    evaluation: Any = Evaluation()
    report: Report | None = field(default=None, repr=False)
    __repr__ = shapes

    def told(self) -> dict[str, str]:
        """Return what ``print`` shows: the report, if there is one, and which columns are conditions."""
        names = self.condition_columns or (f"the last {self.condition_dimension} columns",)
        return {} if self.report is None else self.report.told() | {"given": ", ".join(names)}

    @property
    def dimension(self) -> int:
        """Number of columns of ``x``."""
        return self.blocks.diffused

    @property
    def condition_dimension(self) -> int:
        """Number of columns of the condition."""
        return self.blocks.given

    @property
    def dtype(self) -> Any:
        """Precision of the law."""
        return with_precision("law", self.blocks.rows.dtype)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns of ``x``, if the table had any."""
        names = self.joint.columns
        return names and names[: self.dimension]

    @property
    def condition_columns(self) -> tuple[str, ...] | None:
        """The names of the condition's columns, if the table had any."""
        names = self.joint.columns
        return names and names[self.dimension :]

    def require_width(self, what: str) -> None:
        """Raise ``ValueError`` if the law is a sum of point masses; of a conditional law it never is."""

    def conditions(self, condition: Any, n: int | None = None) -> Float[Array, "b k"]:
        """Return conditions, one for all (k,) or one per query (n, k), in the coordinates of the prior.

        Raises:
            ValueError: If there is none, or it has another shape, is not finite, or lies outside of bounds.
        """
        k, names = self.condition_dimension, self.condition_columns
        found = conditions_in(self.prior.frame, k, names, condition, n, self.dtype)
        assert found is not None
        return found

    def queries(self, x: Array, conditions: Any) -> Array:
        """Return queries of ``blocks``: points (b, d) with their conditions (1 or b, k) behind."""
        return jnp.concatenate([x, jnp.broadcast_to(conditions, (len(x), conditions.shape[1]))], 1)

    @property
    def condition_frame(self) -> Any:
        """The frame of conditions."""
        return self.prior.frame

    def draw_conditions(self, key: Array, n: int, proposal: Any = None) -> Array:
        """Return conditions (n, k), in the prior's coordinates: rows of a proposal, or the prior's draws."""
        if proposal is None:
            return draw(key, self.prior.blocks, n)
        return proposal[jax.random.randint(key, (n,), 0, len(proposal))]

    def mean(self, conditions: Any) -> Float[Array, "b d"]:
        """Return ``E[x | c]`` in the coordinates of ``blocks``, conditions in the prior's."""
        if self._is_traced(conditions) or not len(conditions):
            return _mean(self, conditions)
        return _mean(self, _filled(conditions, len(conditions)))[: len(conditions)]

    def log_evidence(self, conditions: Any) -> Float[Array, "b"]:
        """Return ``log p(c)``, conditions in the coordinates of the prior."""
        return log_density(conditions, 1.0, 0.0, self.prior.blocks, evaluation=self.evaluation)

    def log_prob(self, x: Any, *, condition: Any) -> Float[Array, "b"]:
        """Return ``log p(x | c)`` in nats and the user's units, for ``x`` (b, d) and ``c`` (k,) or (b, k).

        Raises:
            ValueError: If shapes or columns do not fit.

        >>> import mcscore as mcs
        >>> c = jax.random.normal(jax.random.key(0), (200, 1))
        >>> law = mcs.mixture(2 * c, condition=c, kernel=mcs.Whitened(0.3))
        >>> law.log_prob([[1.0], [1.0]], condition=[[0.5], [2.0]]).shape
        (2,)
        """
        x = points(x, self.dimension, self.columns)
        self.warn_of(self.conditions(condition, len(x)))
        c, n = condition_values(condition, self.condition_dimension, self.condition_columns), len(x)
        over, traced = self.evaluation.over, self._is_traced(x, c)
        places = None if not traced and self.joint.is_coarse else places_of((x, c), over)
        if traced or (n and places is not None):
            x, c = (jnp.asarray(a, self.dtype) for a in (x, c))
            c = jnp.broadcast_to(c, (n, c.shape[1]))
            return over_queries(_log_prob, (x, c), (self,), over=over, places=places)[0]
        if n == 0:
            return jnp.zeros(0, self.dtype)
        x, c = (_filled(np.asarray(a, np.float64), n) for a in (x, c))
        if self.joint.is_coarse:  # places on the host
            places = on_device((self.frame.places(x), self.prior.frame.places(c)), self.dtype)
            log_p, evidence = _log_density(self, *places)
        else:
            log_p, evidence = _log_prob(*on_device((x, c), self.dtype), self)
        lost = np.flatnonzero(np.asarray(evidence)[:n] < FAR)  # differences of numbers too large
        for i in lost:
            log_p = log_p.at[i].set(self.at(c[i]).log_prob(x[i])[0])
        return log_p[:n]

    def _is_traced(self, *values: Any) -> bool:
        return any(
            map(is_traced, (*values, *jax.tree.leaves((self.blocks, self.frame, self.prior))))
        )

    def sample(self, key: Array, n: int, *, condition: Any, as_frame: bool = False) -> Any:
        """Return ``n`` exact draws (n, d) from the law given ``c``: one for all (k,), or one per draw (n, k).

        A pass over the rows for each draw's condition, O(n rows k) time. Tied values of conditions stand for
        the middle of their intervals: an approximation.

        >>> import mcscore as mcs
        >>> c = jax.random.normal(jax.random.key(0), (200, 1))
        >>> law = mcs.mixture(2 * c, condition=c, kernel=mcs.Whitened(0.3))
        >>> law.sample(jax.random.key(1), 5, condition=[0.5]).shape
        (5, 1)
        """
        at_least(0, n=n)
        n, key = int(n), as_key(key)
        conditions = self.conditions(condition, n)
        self.warn_of(conditions)
        if n == 0:
            x = jnp.zeros((0, self.dimension), self.dtype)
        elif self._is_traced(key, conditions):
            x = _sample(key, self, jnp.broadcast_to(conditions, (n, conditions.shape[1])))
        else:
            coarse, parts = self.joint.is_coarse, []
            for k in range(-(-n // CHUNK)):  # a number for each block and draw: not all at once
                own = key if k == 0 else jax.random.fold_in(key, k)
                m, c = min(CHUNK, n - k * CHUNK), conditions
                c = _filled(c if len(c) == 1 else c[k * CHUNK : (k + 1) * CHUNK], m)
                drawn = draw_given(own, self.blocks, c) if coarse else _sample(own, self, c)
                parts.append(drawn[:m])
            x = jnp.concatenate(parts)
            if coarse:
                x = self.frame.restore(self.frame.inverse(np.asarray(x, np.float64)))
        return as_dataframe(x, self.columns) if as_frame else x

    def save(self, path: str | os.PathLike) -> None:
        """Write the law to one safetensors file, moved into place when complete; ``mcs.load`` reads it."""
        import_module("mcscore.mixtures.files").save_law(self, path)  # which knows this class

    def support(self, condition: Any) -> Support:
        """Return how well the data know conditions (k,) or (b, k), see `Support`."""
        c = self.conditions(condition)
        if self._is_traced(c) or not len(c):
            return _support(self, c)
        return jax.tree.map(lambda a: a[: len(c)], _support(self, _filled(c, len(c))))

    def at(self, condition: Any) -> Mixture:
        """Return the law given one condition (k,), a mixture like any other: ``joint.condition``."""
        c = condition_values(condition, self.condition_dimension, self.condition_columns)
        if len(c) != 1:
            raise ValueError(f"condition: expected one, got {len(c)}")
        d = self.dimension
        return self.joint.condition(list(range(d, d + self.condition_dimension)), c[0])

    def warn_of(self, c: Array) -> None:
        """Warn of conditions, in the prior's coordinates, without data; of the first 1,000."""
        if self._is_traced(c) or not len(c):
            return
        some = c[:1000]
        size, outside = (
            np.asarray(a)[: len(some)] for a in _support(self, _filled(some, len(some)))
        )
        thin = (outside > BEYOND) | (size < FEW)
        if thin.any():
            warnings.warn(
                f"condition: {thin.sum()} of {len(thin)} lie where there is next to no data (see support()): "
                "what is said there is extrapolated from a few rows",
                stacklevel=3,
            )


def _filled(rows: Any, n: int) -> Any:
    """Return rows for ``n`` queries, one that stands for all repeated; some more, so that few programs do."""
    at = np.minimum(np.arange(rounded_up(n)), n - 1)
    return rows[0 * at if len(rows) == 1 else at]


def conditions_in(
    frame: Any, k: int, names: Any, condition: Any, n: int | None, dtype: Any
) -> Float[Array, "b k"] | None:
    """Return ``k`` columns of conditions, one for all or for each of ``n``, in a frame's coordinates.

    None if ``k`` is 0 and there is no condition. Errors are those of ``ConditionalMixture.conditions``.
    """
    if k == 0:
        if condition is not None:
            raise ValueError(
                "condition: expected none, this was made without; see fit(..., condition=)"
            )
        return None
    if condition is None:
        named = "" if names is None else f" ({', '.join(map(repr, names))})"
        raise ValueError(
            f"condition: needed here, {k} value{'s' * (k > 1)}{named}: one for all, or one per row"
        )
    c = condition_values(condition, k, names)
    if n is not None and len(c) not in (1, n):
        raise ValueError(f"condition: expected one, or one for each of {n} rows, got {len(c)}")
    traced = any(map(is_traced, (c, *jax.tree.leaves(frame))))
    c = jnp.asarray(c, dtype) if traced else np.asarray(c, np.float64)
    if not traced and len(bad := np.flatnonzero(~np.isfinite(c).all(1))):
        raise ValueError(f"condition: expected finite numbers, got {c[bad[0]]}")
    gain = frame.log_det(c)
    if not traced and len(lost := np.flatnonzero(np.isneginf(np.asarray(gain)))):
        raise ValueError(f"condition: {c[lost[0]]} lies outside the bounds of the columns")
    found = jnp.asarray(frame.forward(c), dtype)
    limit = np.sqrt(np.finfo(dtype).max)  # of squares
    if not traced and len(far := np.flatnonzero(~(np.abs(found) < limit).all(1))):
        raise ValueError(f"condition: {c[far[0]]} is too far outside the data for {dtype}")
    return found


def condition_values(condition: Any, k: int, names: tuple[str, ...] | None) -> Any:
    """Return conditions as an array (b, k), by names where there are any."""
    if isinstance(condition, dict):
        if not condition or set(condition) != set(names or ()):
            raise ValueError(
                f"condition: expected values of {names or 'columns without names'}, got {list(condition)}"
            )
        columns = [condition[name] for name in names or ()]
        library = jnp if any(map(is_traced, columns)) else np
        condition = library.stack(library.broadcast_arrays(*columns), -1)
    if (
        k == 1 and np.ndim(condition) < 2 and not isinstance(condition, str)
    ):  # a number, or one per row
        condition = (jnp if is_traced(condition) else np).reshape(condition, (-1, 1))
    return points(condition, k, names, "condition")


@jax.jit
def _mean(law: ConditionalMixture, c: Array) -> Array:
    return _means(law.blocks, c, law.evaluation)


def _means(blocks: Blocks, c: Array, evaluation: Evaluation) -> Array:
    """Return ``E[x | c]``: what is denoised where nothing but noise is left of ``x``."""
    queries = jnp.pad(c, ((0, 0), (blocks.diffused, 0)))
    return stream(queries, 0.0, 1.0, blocks, reading=Denoiser(), evaluation=evaluation).field


@jax.jit
def _log_prob(x: Array, c: Array, law: ConditionalMixture) -> tuple[Array, Array]:
    return _log_density(law, law.frame.places(x), law.prior.frame.places(c))


@jax.jit
def _log_density(law: ConditionalMixture, x: Places, c: Places) -> tuple[Array, Array]:
    """Return ``log p(x | c)`` and ``log p(c)``, by means over the places where ``x`` and ``c`` can be."""
    (y, gain), (z, c_gain) = x, c
    p, q = len(y), len(z)
    pairs = jnp.concatenate([jnp.repeat(y, q, 0), jnp.tile(z, (p, 1, 1))], 2)
    joint = _at(law, law.blocks, pairs) + jnp.repeat(gain, q, 0) + jnp.tile(c_gain, (p, 1))
    evidence = mean_of_places(_at(law, law.prior.blocks, z) + c_gain)
    return mean_of_places(joint) - evidence, evidence


def _at(law: ConditionalMixture, blocks: Blocks, places: Array) -> Array:
    """Return the log density of the blocks' law at places (p, b, d), (p, b)."""
    flat = places.reshape(-1, places.shape[2])
    log_p = log_density(flat, 1.0, 0.0, blocks, evaluation=law.evaluation)
    return log_p.reshape(places.shape[:2])


@jax.jit
def _sample(key: Array, law: ConditionalMixture, c: Array) -> Array:
    return law.frame.restore(law.frame.inverse(draw_given(key, law.blocks, c)))


@jax.jit
def _support(law: ConditionalMixture, c: Array) -> Support:
    log_p = law.log_evidence(c)
    size = shared(law.prior.blocks, c, log_p, law.evaluation)
    return Support(size, jnp.maximum(law.least - log_p, 0))


def conditional_on_last(joint: Mixture, k: int) -> ConditionalMixture:
    """Return the law of a joint one's first columns, given its last ``k``."""
    d = joint.dimension - k
    return conditional_of(joint, list(range(d)), list(range(d, d + k)))


def conditional_of(joint: Mixture, columns: list[int], given: list[int]) -> ConditionalMixture:
    """Return the law of some columns of a joint one, given others, by their numbers; all of them.

    Raises:
        ValueError: If the joint law has no density.
    """
    joint.require_width("condition")
    d, whole = len(columns), joint.dimension
    prior = joint.marginal(given)
    frame, onto = joint.frame.part(columns, whole)
    _, along = joint.frame.part(given, whole)
    onto, along = (np.asarray(a, np.float64) for a in (onto, along))
    # Of the frame's own scores, column by column, what is correlated is whitened.
    covariance = onto.T @ _covariance(joint) @ onto
    root = np.linalg.cholesky(covariance + RIDGE * np.trace(covariance) / d * np.eye(d))
    signs = np.concatenate([np.eye(d), -np.eye(d)])
    frame = frame.recalibrated(signs, signs @ root.T)
    onto = onto @ np.linalg.inv(root).T
    onto, along = (jnp.asarray(a, joint.dtype) for a in (onto, along))
    blocks = _divided(joint.blocks, onto, along)
    width, variance, least = _measured(
        joint.blocks, blocks, prior.blocks, joint.evaluation, onto, along
    )
    if columns != list(range(d)):
        joint = joint.marginal([*columns, *given])
    return ConditionalMixture(
        blocks, width, variance, frame, joint, prior, least, joint.evaluation, joint.report
    )


def _covariance(law: Mixture) -> np.ndarray:
    """Return the covariance of the law, (d, d), summed in float64."""
    points, log_weights = (np.asarray(a, np.float64) for a in law.points())
    weights, blocks = np.exp(log_weights), law.blocks
    centered = points - weights @ points
    between = (weights * centered.T) @ centered
    mass = np.exp(np.asarray(blocks.log_weights, np.float64)).sum(1)
    variances = np.asarray(blocks.variances, np.float64)
    if blocks.bases is None:
        return between + np.diag(mass @ variances)
    scaled = np.asarray(blocks.bases, np.float64) * np.sqrt(mass[:, None] * variances)[:, None]
    return between + np.einsum("kde,kfe->df", scaled, scaled)


_divided = jax.jit(divided)


@partial(jax.jit, static_argnums=3)
def _measured(
    joint: Blocks, blocks: Blocks, prior: Blocks, evaluation: Evaluation, onto: Array, along: Array
) -> tuple[Array, Array, Array]:
    """Return the law's width, variance, and the log density of its least likely condition."""
    y = draw(jax.random.key(0), joint, DRAWN)
    x, c = (jnp.matmul(y, m, precision="highest") for m in (onto, along))
    variance = jnp.mean((x - _means(blocks, c, evaluation)) ** 2)
    mass = jnp.exp(jax.nn.logsumexp(joint.log_weights, 1))
    tiny = jnp.finfo(y.dtype).tiny
    logs = jnp.log(jnp.maximum(blocks.variances[:, : blocks.diffused], tiny)).mean(1)
    width = 0.7 * jnp.exp(mass @ logs / 2)
    return width, variance, log_density(c, 1.0, 0.0, prior, evaluation=evaluation).min()
