"""One streaming pass over the blocks, queries in tiles: nothing of size (queries x rows) is ever held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mcscore.jet.blocks import Blocks, Evaluation
from mcscore.jet.dense import block_jet
from mcscore.jet.readings import Jet, Reading, Score, merge


def stream(
    x_t: Float[Array, "b d"],
    alpha: ArrayLike,
    variance: ArrayLike,
    blocks: Blocks,
    *,
    reading: Reading = Score(),
    laplacian: bool = False,
    evaluation: Evaluation = Evaluation(),
) -> Jet:
    """Return the jet of the diffused law at ``x_t``, streamed over blocks.

    O(b n d) time; O(b d + tile x block) memory, also under reverse-mode differentiation. A tile is
    computed in float64 where float32 would lose digits to the expanded square (see ``loses_digits``), if
    both ``reading`` and ``evaluation`` are ``careful``.

    Args:
        x_t: Queries, in the blocks' coordinates.
        alpha: Scale of the signal, a scalar or one per query.
        variance: ``sigma^2``, of the same shape.
        blocks: The law at time 0.
        reading: Which vector field to read, its rates scalars or one per query.
        laplacian: Whether to compute the Laplacian of the log density too.
        evaluation: How.
    """
    if x_t.ndim != 2 or x_t.shape[1] != blocks.rows.shape[-1]:
        expected = f"(queries, {blocks.rows.shape[-1]})"
        raise ValueError(f"x_t: expected shape {expected} to match the mixture, got {x_t.shape}")

    def plain(operands: Any, blocks: Blocks) -> Jet:
        x, alpha, variance, reading = jax.tree.map(jnp.transpose, operands)

        @jax.checkpoint  # recompute tiles in reverse mode: memory must not grow with (queries x rows)
        def step(jet: Jet, block: Blocks) -> tuple[Jet, None]:
            block = _cast(block, x.dtype)
            new = block_jet(x, alpha, variance, block, reading, laplacian)
            return merge(jet, new, axis=0), None

        nothing = jnp.full_like(x, -jnp.inf, shape=x.shape[1:])
        start = Jet(nothing, jnp.zeros_like(x), jnp.zeros_like(nothing) if laplacian else None)
        jet = jax.lax.scan(step, start, blocks)[0]
        return jet._replace(field=jet.field.T)

    columns = jax.tree.map(
        lambda v: jnp.reshape(jnp.asarray(v, x_t.dtype), (-1, 1)), (alpha, variance, reading)
    )
    careful = reading.careful and evaluation.careful and x_t.dtype == jnp.float32
    one_tile = _with_care(plain) if careful else plain
    tile = evaluation.tile(blocks.rows.shape[-2])
    return over_tiles(lambda operands: one_tile(operands, blocks), (x_t, *columns), tile)


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
    reach = jnp.max(jnp.sum(x_t**2, 1)) + jnp.max(alpha**2) * jnp.max(jnp.sum(blocks.centers**2, 1))
    return jnp.max(precision) * reach * 2.0**-24 > 1e-4


if hasattr(jax, "enable_x64"):
    _enable_x64 = jax.enable_x64
else:  # jax < 0.8
    from jax.experimental import enable_x64 as _enable_x64  # type: ignore[attr-defined]


def _cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, dtype), tree)


def over_tiles(function: Callable, operands: tuple, tile: int) -> Any:
    """Apply ``function`` to tiles of the leading axis; operands with one row go to every tile."""
    queries = operands[0].shape[0]
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
