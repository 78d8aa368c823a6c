"""Exact draws from a blocked law, in the coordinates of its blocks."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore.jet.blocks import Blocks


@partial(jax.jit, static_argnums=2)
def draw(key: Array, blocks: Blocks, n: int) -> Float[Array, "n d"]:
    """Return ``n`` independent draws from the law of the blocks, in their coordinates."""
    pick, noise = jax.random.split(key)
    block, row = pick_rows(pick, blocks.log_weights, n)
    z = jax.random.normal(noise, (n, blocks.rows.shape[-1]), blocks.rows.dtype)
    y = blocks.rows[block, row] + jnp.sqrt(blocks.variances)[block] * z
    if blocks.bases is not None:
        bases = blocks.bases

        def rotate(args):
            return jnp.matmul(bases[args[1]], args[0], precision="highest")

        y = jax.lax.map(rotate, (y, block), batch_size=4096)  # a basis per draw: not all at once
    return y + blocks.centers[block]


def pick_rows(key: Array, log_weights: Float[Array, "k r"], n: int) -> tuple[Array, Array]:
    """Return ``n`` (block, row) indices drawn by weight, O(k r + n log r).

    In two stages: one float32 uniform could not tell 10^7 rows apart.
    """
    first, second = jax.random.split(key)
    dtype = log_weights.dtype
    mass = jnp.exp(jax.nn.logsumexp(log_weights, 1))
    total = jnp.cumsum(mass)
    block = jnp.searchsorted(
        total, jax.random.uniform(first, (n,), dtype) * total[-1], side="right"
    )
    within = jnp.cumsum(jnp.exp(log_weights), 1)
    target = jax.random.uniform(second, (n,), dtype) * within[block, -1]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        left = within[block, middle] > target
        return jnp.where(left, low, middle + 1), jnp.where(left, middle, high)

    width = log_weights.shape[1]
    start = jnp.zeros_like(block), jnp.full_like(block, width - 1)
    row = jax.lax.fori_loop(0, max(width - 1, 1).bit_length(), halve, start)[1]
    return block, row
