"""Exact draws from a blocked law, in the coordinates of its blocks."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore.jet.blocks import Blocks
from mcscore.jet.streaming import over_tiles

TILE = 2048  # conditions looked at together


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


@jax.jit
def draw_given(key: Array, blocks: Blocks, conditions: Float[Array, "n k"]) -> Float[Array, "n d"]:
    """Return a draw for each of the conditions, of a law with ``given`` columns (see `Blocks`).

    One pass over the rows for each, in tiles: first the block, by its mass, then the row.
    """
    c, n, d = conditions, len(conditions), blocks.diffused
    block_key, row_key, noise_key = jax.random.split(key, 3)
    block = jax.random.categorical(block_key, _masses(blocks, c))

    def row_of(given: tuple[Array, Array, Array]) -> Array:
        c, block, key = given
        return jax.random.categorical(
            key, _logits(jax.tree.map(lambda a: a[block], blocks), c[None])[:, 0]
        )

    keys = jax.random.split(row_key, n)
    row = jax.lax.map(row_of, (c, block, keys), batch_size=256)
    z = jax.random.normal(noise_key, (n, d), c.dtype)

    def place(given: tuple[Array, Array, Array, Array]) -> Array:
        c, block, row, z = given
        basis, center = blocks.bases[block], blocks.centers[block]
        told = jnp.matmul(c - center[d:], basis[d:, :d], precision="highest")
        y = blocks.rows[block, row, :d] + jnp.sqrt(blocks.variances[block, :d]) * z - told
        return center[:d] + jnp.matmul(basis[:d, :d], y, precision="highest")

    return jax.lax.map(place, (c, block, row, z), batch_size=4096)


def _logits(block: Blocks, c: Float[Array, "b k"]) -> Float[Array, "r b"]:
    """Return the log weights of a block's rows given conditions."""
    d = block.diffused
    seen = jnp.matmul(c - block.centers[None, d:], block.bases[d:, d:], precision="highest")
    rows = block.rows[:, d:]
    logits = jnp.matmul(rows, seen.T, precision="highest") - jnp.sum(rows**2, 1)[:, None] / 2
    return block.log_weights[:, None] + logits - jnp.sum(seen**2, 1)[None] / 2


def _masses(blocks: Blocks, c: Float[Array, "b k"]) -> Float[Array, "b n"]:
    """Return the log mass of every block given conditions."""

    def tile(c: tuple[Array]) -> Array:
        def step(_: None, block: Blocks) -> tuple[None, Array]:
            return None, jax.nn.logsumexp(_logits(block, c[0]), 0)

        return jax.lax.scan(step, None, blocks)[1].T

    return over_tiles(tile, (c,), TILE)


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
