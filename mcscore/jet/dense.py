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

    Queries run along the last axis: with few columns every operation is a long vector's.
    """
    if block.given:
        return _conditional_jet(x, alpha, variance, block, reading, laplacian)
    rows, basis = block.rows, block.bases
    variances, center = block.variances[:, None], block.centers[:, None]
    x = x - alpha * center
    x = x if basis is None else product(basis.T, x)
    precision = 1 / (alpha**2 * variances + variance)

    log_p, mean, spread = posterior(x, alpha, precision, rows, block.log_weights, laplacian)
    slope, constant, offset = reading.coefficients(alpha)
    along = (slope * variances + constant) * precision
    field = along * x + (offset - alpha * along) * mean
    field = field if basis is None else product(basis, field)
    field = field + offset * center
    if spread is None:
        return Jet(log_p, field, None)
    return Jet(log_p, field, jnp.sum((alpha * precision) ** 2 * spread - precision, 0))


def _conditional_jet(
    x: Array, alpha: Array, variance: Array, block: Blocks, reading: Reading, laplacian: bool
) -> Jet:
    """Return ``block_jet`` where the last columns of ``x`` are conditions, see `Blocks`."""
    split, basis = block.diffused, block.bases
    y, c, center = x[:split], x[split:] - block.centers[split:, None], block.centers[:split, None]
    seen = product(basis[split:].T, c)  # what c says of every column, those of c first of all
    told = seen[:split]
    y = product(basis[:split, :split].T, y - alpha * center) + alpha * told
    like = jnp.broadcast_to(alpha, (1, jnp.shape(alpha)[-1]))
    ones = jnp.ones((block.given, like.shape[1]), x.dtype)
    alphas = jnp.concatenate([jnp.broadcast_to(alpha, (split, like.shape[1])), ones])
    variances = block.variances[:split, None]
    precision = 1 / (alpha**2 * variances + variance)
    precisions = jnp.concatenate(
        [precision, jnp.broadcast_to(ones[:, :1], (block.given, precision.shape[1]))]
    )
    queries = jnp.concatenate([y, seen[split:]])

    log_p, mean, spread = posterior(
        queries, alphas, precisions, block.rows, block.log_weights, laplacian
    )
    slope, constant, offset = reading.coefficients(alpha)
    along = (slope * variances + constant) * precision
    field = along * y + (offset - alpha * along) * mean[:split] - offset * told
    field = product(basis[:split, :split], field) + offset * center
    if spread is None:
        return Jet(log_p, field, None)
    own = (alpha * precision) ** 2 * spread[:split] - precision
    return Jet(log_p, field, jnp.sum(own, 0))
