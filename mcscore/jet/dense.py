"""The jet of one block, from the posterior of which of its rows a diffused point came from.

Everything that it needs is a weight per (row, query), a softmax over rows, and the mean and variance of the
rows under it: two matrix products and one ``exp`` per (row, query) pair.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore.jet.blocks import Blocks
from mcscore.jet.readings import Jet, Reading


def product(a: Array, b: Array) -> Array:
    """Matrix product in full float32: TF32 or bfloat16 would cost the logits all their digits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def block_weights(
    x: Float[Array, "d b"], alpha: Array, precision: Array, rows: Array, log_weights: Array
) -> tuple[Float[Array, "r b"], Float[Array, "b"]]:
    """Return unnormalized posterior weights (largest 1) and the log density of the largest.

    ``x`` is relative to the block's center and in its basis. The square is expanded, which is what
    makes it a matrix product; it loses digits in proportion to (block radius / sigma)^2 only, since
    rows are relative to their block's center.
    """
    logits = product(rows, alpha * precision * x)
    logits += log_weights[:, None] - product(rows**2, alpha**2 * precision) / 2
    top = jax.lax.stop_gradient(jnp.max(logits, 0))
    top = jnp.where(jnp.isneginf(top), 0, top)  # a block without weight: all weights 0, not NaN
    normalizer = jnp.sum(jnp.log(precision / (2 * jnp.pi)) - precision * x**2, 0) / 2
    return jnp.exp(logits - top[None]), top + normalizer


def posterior(
    x: Float[Array, "d b"],
    alpha: Array,
    precision: Array,
    rows: Array,
    log_weights: Array,
    spread: bool,
) -> tuple[Float[Array, "b"], Float[Array, "d b"], Float[Array, "d b"] | None]:
    """Return a block's log density, and the posterior mean and variance of its rows."""
    weights, log_top = block_weights(x, alpha, precision, rows, log_weights)
    mass, mean = jnp.sum(weights, 0), product(rows.T, weights)
    empty = mass == 0
    inverse = 1 / jnp.where(empty, 1, mass)[None]
    mean = mean * inverse
    log_p = jnp.where(empty, -jnp.inf, log_top - jnp.log(inverse[0]))
    if not spread:
        return log_p, mean, None
    square = product((rows**2).T, weights)
    return log_p, mean, jnp.maximum(square * inverse - mean**2, 0)


def block_jet(
    x: Float[Array, "d b"],
    alpha: Array,
    variance: Array,
    block: Blocks,
    reading: Reading,
    laplacian: bool,
) -> Jet:
    """Return one block's jet, its field (d, b); ``alpha``, ``variance`` are (1, 1) or (1, b).

    Queries run along the last axis: with few columns every operation is a long vector's. Where the block has
    ``given`` columns (see `Blocks`) these are neither scaled nor noisy, and what they say moves the others.
    """
    split, basis = block.diffused, block.bases
    own = None if basis is None else basis[:split, :split]
    variances, center = block.variances[:split, None], block.centers[:split, None]
    y = x[:split] - alpha * center
    y = y if own is None else product(own.T, y)
    precision = 1 / (alpha**2 * variances + variance)
    queries, scales, precisions, told = y, alpha, precision, None
    if basis is not None and block.given:
        seen = product(basis[split:].T, x[split:] - block.centers[split:, None])
        told = seen[:split]
        y = y + alpha * told
        ones = jnp.ones((block.given, precision.shape[1]), x.dtype)
        queries = jnp.concatenate([y, seen[split:]])
        scales = jnp.concatenate([jnp.broadcast_to(alpha, precision.shape), ones])
        precisions = jnp.concatenate([precision, ones])

    log_p, mean, spread = posterior(
        queries, scales, precisions, block.rows, block.log_weights, laplacian
    )
    slope, constant, offset = reading.coefficients(alpha)
    along = (slope * variances + constant) * precision
    field = along * y + (offset - alpha * along) * mean[:split]
    field = field if told is None else field - offset * told
    field = field if own is None else product(own, field)
    field = field + offset * center
    if spread is None:
        return Jet(log_p, field, None)
    squares = (alpha * precision) ** 2 * spread[:split]
    return Jet(log_p, field, jnp.sum(squares - precision, 0))
