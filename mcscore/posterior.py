"""The posterior of one block: which of its rows a diffused point came from.

Everything that the jet needs of a block is a weight per (row, query), a softmax over rows, and the mean
and variance of the rows under it: two matrix products and one ``exp``, or the fused kernel of ``fused``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore import fused


def product(a: Array, b: Array) -> Array:
    """Matrix product in full float32: TF32 or bfloat16 would cost the logits all their digits."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def block_weights(
    x: Float[Array, "d b"], alpha: Array, precision: Array, rows: Array, log_weights: Array
) -> tuple[Float[Array, "r b"], Float[Array, "b"]]:
    """Return unnormalised posterior weights (largest 1) and the log density of the largest.

    ``x`` is relative to the block's centre and in its basis. The square is expanded, which is what
    makes it a matrix product; it loses digits in proportion to (block radius / sigma)^2 only, since
    rows are relative to their block's centre.
    """
    logits = product(rows, alpha * precision * x)
    logits += log_weights[:, None] - product(rows**2, alpha**2 * precision) / 2
    top = jax.lax.stop_gradient(jnp.max(logits, 0))
    top = jnp.where(jnp.isneginf(top), 0, top)  # a block without weight: all weights 0, not NaN
    return jnp.exp(logits - top[None]), top + _normaliser(x, precision)


def _normaliser(x: Array, precision: Array) -> Float[Array, "b"]:
    return jnp.sum(jnp.log(precision / (2 * jnp.pi)) - precision * x**2, 0) / 2


def posterior(
    x: Float[Array, "d b"],
    alpha: Array,
    precision: Array,
    rows: Array,
    log_weights: Array,
    spread: bool,
) -> tuple[Float[Array, "b"], Float[Array, "d b"], Float[Array, "d b"] | None]:
    """Return a block's log density, and the posterior mean and variance of its rows."""
    # The fused kernel takes float32 and one time for all queries.
    fusible = fused.ENABLED and precision.shape[1] == 1 and x.dtype == jnp.float32
    moments = _fused_moments if fusible else _moments
    mass, log_top, mean, square = moments(spread, x, alpha, precision, rows, log_weights)
    empty = mass == 0
    inverse = 1 / jnp.where(empty, 1, mass)[None]
    mean = mean * inverse
    log_p = jnp.where(empty, -jnp.inf, log_top - jnp.log(inverse[0]))
    return log_p, mean, None if square is None else jnp.maximum(square * inverse - mean**2, 0)


def _moments(spread: bool, x: Array, alpha: Array, precision: Array, rows: Array, logs: Array):
    """Return mass, log density of the heaviest row, and sums of rows and of their squares."""
    weights, log_top = block_weights(x, alpha, precision, rows, logs)
    square = product((rows**2).T, weights) if spread else None
    return jnp.sum(weights, 0), log_top, product(rows.T, weights), square


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fused_moments(
    spread: bool, x: Array, alpha: Array, precision: Array, rows: Array, logs: Array
):
    """Return what ``_moments`` does, the weights never in memory: ``[rows, 1, rows^2]`` are keys."""
    d = len(x)
    keys = [rows, jnp.ones_like(rows[:, :1])] + [rows**2] * spread
    bias = logs - product(rows**2, alpha**2 * precision)[:, 0] / 2
    queries = jnp.pad(alpha * precision * x, ((0, 1 + spread * d), (0, 0)))
    total, top = fused.attend(queries, jnp.concatenate(keys, 1), bias)
    square = total[d + 1 :] if spread else None
    return total[d], top + _normaliser(x, precision), total[:d], square


@_fused_moments.defjvp
def _(spread: bool, primals: tuple, tangents: tuple):
    return jax.jvp(partial(_moments, spread), primals, tangents)
