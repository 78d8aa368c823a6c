r"""The jet of log p: one streaming pass over the data gives density, score and divergence.

The data law is a mixture stored in *blocks*: the rows of a block share a centre ``c``, an orthonormal
basis ``R`` and the variances ``v`` of their kernel along it. Diffused to ``x_t = alpha x_0 + sigma z``,
the component of row ``m`` is, in the block's basis, a diagonal Gaussian at every time,

    N( x_t ; alpha m, diag(1/lambda) ),        lambda = 1 / (alpha^2 v + sigma^2).

With ``w_i`` the posterior weight of row i, a softmax over rows, everything is an average over rows:

    log p           log-sum-exp of the logits
    vector field    E_w[ A x + B m ]           (score, denoiser, velocity: see ``Reading``)
    lap log p       -sum(lambda) + sum(alpha^2 lambda^2 Var_w[m])

so a block costs two matrix products and one ``exp`` per (query, row) pair. Jets of disjoint parts of
the data *merge* (law of total variance); a scan over blocks, several devices and mini-batches differ
only in what is merged. The Laplacian is that of ``log p``, not of ``p``: ``lap p / p - |grad|^2``
cancels catastrophically far from the data, the variance does not.

Nothing of size (queries x rows) is ever held: queries are taken ``query_tile`` at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mcscore.posterior import posterior, product
from mcscore.shown import shapes

QUERY_TILE: int | None = None  # set before anything is compiled, overrides ``query_tile``


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """Rows of the mixture, stored block by block.

    Attributes:
        rows: ``m - c`` in the block's basis (k, r, d), zero where padded.
        log_weights: Log of each row's weight in the whole mixture (k, r), ``-inf`` where padded.
        centres: Each block's centre (k, d).
        bases: Orthonormal columns (k, d, d), or None for the identity (isotropic kernels).
        variances: Kernel variances along the basis (k, d).
    """

    rows: Any
    log_weights: Any
    centres: Any
    bases: Any
    variances: Any
    __repr__ = shapes


class Jet(NamedTuple):
    """Log density, vector field and Laplacian of the log density at each query.

    ``field`` is the score unless another reading was asked for; ``laplacian`` is None unless asked for.
    """

    log_p: Float[Array, "b"]
    field: Float[Array, "b d"]
    laplacian: Float[Array, "b"] | None


class Reading(NamedTuple):
    """A vector field as a posterior average: ``E_w[A x + B m]``, per direction of a block's basis.

    ``offset`` is ``alpha A + B``, the coefficient of the block's centre, in closed form so that
    nothing cancels.
    """

    query: Array
    row: Array
    offset: Array


Coefficients = Callable[[Array, Array, Array, Any], Reading]


def score_reading(alpha: Array, precision: Array, variances: Array, _: Any) -> Reading:
    """``grad log p = E_w[-lambda (x - alpha m)]``."""
    return Reading(-precision, alpha * precision, jnp.zeros_like(alpha))


def denoiser_reading(alpha: Array, precision: Array, variances: Array, _: Any) -> Reading:
    """``E[x_0 | x_t] = E_w[m + alpha v lambda (x - alpha m)]``, regular also at ``alpha = 0``."""
    gain = alpha * variances * precision
    return Reading(gain, 1 - alpha * gain, jnp.ones_like(alpha))


def velocity_reading(
    alpha: Array, precision: Array, variances: Array, rates: tuple[Array, Array]
) -> Reading:
    """``dx/dt = alpha' E[x_0 | x_t] + sigma' E[z | x_t]``, regular at both ends of time.

    Equal to ``b x - g^2/2 score`` (arXiv 2310.14458, Section 3) without its division by ``alpha``.

    Args:
        alpha: Scale of the signal.
        precision: ``lambda``.
        variances: Kernel variances ``v``.
        rates: ``(d alpha/dt, d sigma^2/dt)``.
    """
    d_alpha, d_variance = rates
    query = (d_alpha * alpha * variances + d_variance / 2) * precision
    return Reading(query, d_alpha - alpha * query, d_alpha)


def merge(first: Jet, second: Jet, axis: int = -1) -> Jet:
    """Return the jet of the sum of two unnormalised laws. Associative and commutative.

    Masses add; fields average with the masses as weights; Laplacians average too, plus the variance
    between the two gradients (law of total variance), so ``field`` must be the score when they are kept.

    Args:
        first: Of one part of the data.
        second: Of another part.
        axis: Axis of ``field`` that runs over coordinates.

    >>> part = Jet(jnp.zeros(1), jnp.ones((1, 2)), jnp.zeros(1))
    >>> float(merge(part, part).log_p[0])  # log 2
    0.693...
    """
    log_p = jnp.logaddexp(first.log_p, second.log_p)
    reference = jnp.where(jnp.isneginf(log_p), 0, log_p)  # both empty: no weights, not NaN
    w1, w2 = jnp.exp(first.log_p - reference), jnp.exp(second.log_p - reference)
    along = lambda w: jnp.expand_dims(w, axis)  # noqa: E731
    field = along(w1) * first.field + along(w2) * second.field
    if first.laplacian is None or second.laplacian is None:
        return Jet(log_p, field, None)
    between = w1 * w2 * jnp.sum((first.field - second.field) ** 2, axis)
    return Jet(log_p, field, w1 * first.laplacian + w2 * second.laplacian + between)


def block_jet(
    x: Float[Array, "d b"],
    alpha: Array,
    variance: Array,
    block: Blocks,
    coefficients: Coefficients,
    rates: Any,
    laplacian: bool,
) -> Jet:
    """Return one block's jet, its field (d, b); ``alpha``, ``variance`` are (1, 1) or (1, b).

    Queries run along the last axis: with few columns every operation is a long vector's.
    """
    rows, basis = block.rows, block.bases
    variances, centre = block.variances[:, None], block.centres[:, None]
    x = x - alpha * centre
    x = x if basis is None else product(basis.T, x)
    precision = 1 / (alpha**2 * variances + variance)

    log_p, mean, spread = posterior(x, alpha, precision, rows, block.log_weights, laplacian)
    reading = coefficients(alpha, precision, variances, rates)
    field = reading.query * x + reading.row * mean
    field = field if basis is None else product(basis, field)
    field = field + reading.offset * centre
    if spread is None:
        return Jet(log_p, field, None)
    return Jet(log_p, field, jnp.sum((alpha * precision) ** 2 * spread - precision, 0))


def stream(
    x_t: Float[Array, "b d"],
    alpha: ArrayLike,
    variance: ArrayLike,
    blocks: Blocks,
    *,
    coefficients: Coefficients = score_reading,
    rates: Any = None,
    laplacian: bool = False,
    exact: bool = False,
) -> Jet:
    """Return the jet of the diffused law at ``x_t``, streamed over blocks.

    O(b n d) time; O(b d + tile x block) memory, also under reverse-mode differentiation.

    Args:
        x_t: Queries, in the blocks' coordinates.
        alpha: Scale of the signal, a scalar or one per query.
        variance: ``sigma^2``, of the same shape.
        blocks: The law at time 0.
        coefficients: Which vector field to read (``score_reading`` by default).
        rates: What ``coefficients`` needs beside, e.g. ``(d alpha/dt, d sigma^2/dt)``.
        laplacian: Whether to compute the Laplacian of the log density too.
        exact: Compute a tile in float64 where float32 would lose digits to the expanded square
            (see ``loses_digits``), as public fields do; the flow's own error is far larger.
    """
    if x_t.ndim != 2 or x_t.shape[1] != blocks.rows.shape[-1]:
        expected = f"(queries, {blocks.rows.shape[-1]})"
        raise ValueError(f"x_t: expected shape {expected} to match the mixture, got {x_t.shape}")

    def plain(operands: Any, blocks: Blocks) -> Jet:
        x, alpha, variance, rates = jax.tree.map(jnp.transpose, operands)

        @jax.checkpoint  # recompute tiles in reverse mode: memory must not grow with (queries x rows)
        def step(jet: Jet, block: Blocks) -> tuple[Jet, None]:
            block = _cast(block, x.dtype)
            new = block_jet(x, alpha, variance, block, coefficients, rates, laplacian)
            return merge(jet, new, axis=0), None

        nothing = jnp.full_like(x, -jnp.inf, shape=x.shape[1:])
        start = Jet(nothing, jnp.zeros_like(x), jnp.zeros_like(nothing) if laplacian else None)
        jet = jax.lax.scan(step, start, blocks)[0]
        return jet._replace(field=jet.field.T)

    columns = (jnp.reshape(jnp.asarray(v, x_t.dtype), (-1, 1)) for v in (alpha, variance))
    rates = jax.tree.map(lambda v: jnp.reshape(jnp.asarray(v, x_t.dtype), (-1, 1)), rates)
    one_tile = _with_care(plain) if exact and x_t.dtype == jnp.float32 else plain
    rows = blocks.rows.shape[-2]
    return over_tiles(lambda operands: one_tile(operands, blocks), (x_t, *columns, rates), rows)


def _with_care(plain: Callable) -> Callable:
    """Return ``plain``, evaluated in float64 where float32 would lose digits.

    JAX cannot transform float64 code where x64 is off: ``vmap`` and differentiation take ``plain``.
    """

    def in_double(operands: Any, blocks: Blocks) -> Jet:
        with _enable_x64(True):
            return _cast(plain(_cast(operands, jnp.float64), blocks), jnp.float32)

    @jax.custom_batching.custom_vmap
    def careful(operands: Any, blocks: Blocks) -> Jet:
        x, alpha, variance, _ = operands
        needed = loses_digits(x, alpha, variance, blocks)
        return jax.lax.cond(needed, in_double, plain, operands, blocks)

    @careful.def_vmap
    def _(_, batched, operands, blocks):
        axes = jax.tree.map(lambda b: 0 if b else None, batched)
        out = jax.vmap(plain, in_axes=tuple(axes))(operands, blocks)
        return out, jax.tree.map(lambda _: True, out)

    differentiable = jax.custom_jvp(careful)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return differentiable


def loses_digits(x_t: Array, alpha: Array, variance: Array, blocks: Blocks) -> Array:
    """Return whether float32's rounding of the expanded square may reach 1e-4 in a logit.

    The logit ``-lambda |x - alpha m|^2 / 2`` is a difference of terms of size ``lambda |x|^2`` and
    ``lambda |alpha m|^2``, each rounded to one part in 2^24.
    """
    precision = 1 / (alpha**2 * blocks.variances.min() + variance)
    reach = jnp.max(jnp.sum(x_t**2, 1)) + jnp.max(alpha**2) * jnp.max(jnp.sum(blocks.centres**2, 1))
    return jnp.max(precision) * reach * 2.0**-24 > 1e-4


if hasattr(jax, "enable_x64"):
    _enable_x64 = jax.enable_x64
else:  # jax < 0.8
    from jax.experimental import enable_x64 as _enable_x64  # type: ignore[attr-defined]


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, dtype), tree)


def query_tile(rows: int) -> int:
    """Return how many queries are evaluated together with blocks of ``rows`` rows.

    A CPU wants tile x block within its caches, yet work enough in every
    step of the scan over blocks: of short blocks more queries. So does a GPU, where its memory allows: one
    query per free MiB, whose weights and their copies take about one part in a hundred of that.
    """
    if QUERY_TILE:
        return QUERY_TILE
    if jax.default_backend() == "cpu":
        return min(8192, max(1024, 2**20 // rows))
    memory = jax.local_devices()[0].memory_stats() or {}
    free = memory.get("bytes_limit", 2**34) - memory.get("bytes_in_use", 0)
    return min(16_384, max(1024, free // 2**20))


def over_tiles(function: Callable, operands: tuple, rows: int) -> Any:
    """Apply ``function`` to tiles of the leading axis; operands with one row go to every tile."""
    queries, tile = operands[0].shape[0], query_tile(rows)
    if queries <= tile:
        return function(operands)
    tiles = -(-queries // tile)
    size = -(-queries // tiles)  # equal tiles: the least padding

    leaves, tree = jax.tree.flatten(operands)
    tiled = [leaf.shape[0] == queries and leaf.ndim == 2 for leaf in leaves]

    def split(leaf):
        # Padding repeats the first row, so that no padded query can be less regular than a real one.
        padding = jnp.broadcast_to(leaf[:1], (tiles * size - queries, leaf.shape[1]))
        return jnp.concatenate([leaf, padding]).reshape(tiles, size, leaf.shape[1])

    def one(parts):
        parts = iter(parts)
        whole = [next(parts) if t else leaf for leaf, t in zip(leaves, tiled, strict=True)]
        return function(jax.tree.unflatten(tree, whole))

    out = jax.lax.map(one, [split(leaf) for leaf, t in zip(leaves, tiled, strict=True) if t])
    return jax.tree.map(lambda a: a.reshape(tiles * size, *a.shape[2:])[:queries], out)


__all__ = [
    "Blocks",
    "Jet",
    "Reading",
    "denoiser_reading",
    "merge",
    "score_reading",
    "stream",
    "velocity_reading",
]
