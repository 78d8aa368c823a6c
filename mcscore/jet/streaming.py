"""One streaming pass over the blocks, queries in tiles: nothing of size (queries x rows) is ever held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, Float

from mcscore._arrays import enable_x64
from mcscore.jet import native
from mcscore.jet.blocks import Blocks, Evaluation
from mcscore.jet.dense import block_jet
from mcscore.jet.readings import Jet, Reading, Score, merge, merge_over
from mcscore.parallel import Over, is_bound


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

    O(b n d) time; O(b d + tile x block) memory, also under reverse-mode differentiation. What float32
    would lose to the expanded square (see ``loses_digits``) is computed in float64, if both ``reading``
    and ``evaluation`` are ``careful``; the native kernel expands no square.

    Args:
        x_t: Queries, in the blocks' coordinates; with their conditions behind them, where blocks have any.
        alpha: Scale of the signal, a scalar or one per query.
        variance: ``sigma^2``, of the same shape.
        blocks: The law at time 0.
        reading: Which vector field to read, its rates scalars or one per query.
        laplacian: Whether to compute the Laplacian of the log density too, beside the score.
        evaluation: How.

    Raises:
        ValueError: If columns do not fit, or a Laplacian is asked for beside another reading.
    """
    return _stream(x_t, alpha, variance, blocks, reading, 2 if laplacian else 1, evaluation)


def log_density(
    x_t: Float[Array, "b d"],
    alpha: ArrayLike,
    variance: ArrayLike,
    blocks: Blocks,
    *,
    evaluation: Evaluation = Evaluation(),
) -> Float[Array, "b"]:
    """Return the log density of the diffused law at ``x_t`` alone, see ``stream``."""
    return _stream(x_t, alpha, variance, blocks, Score(), 0, evaluation).log_p


def _stream(
    x_t: Array,
    alpha: ArrayLike,
    variance: ArrayLike,
    blocks: Blocks,
    reading: Reading,
    order: int,
    evaluation: Evaluation,
) -> Jet:
    if x_t.ndim != 2 or x_t.shape[1] != blocks.rows.shape[-1]:
        expected = f"(queries, {blocks.rows.shape[-1]})"
        raise ValueError(f"x_t: expected shape {expected} to match the mixture, got {x_t.shape}")
    if order > 1 and not isinstance(reading, Score):  # which ``merge`` takes the field for
        raise ValueError(
            f"laplacian: expected False with another reading than Score(), got {reading}"
        )
    columns = jax.tree.map(
        lambda v: jnp.reshape(jnp.asarray(v, x_t.dtype), (-1, 1)), (alpha, variance, reading)
    )
    operands, single = (x_t, *columns), x_t.dtype == jnp.float32
    if evaluation.over is not None:
        alone = replace(evaluation, over=None)

        def own(operands: tuple, blocks: Blocks) -> Jet:
            x_t, alpha, variance, reading = operands
            return _stream(x_t, alpha, variance, blocks, reading, order, alone)

        return _over_devices(own, evaluation.over, operands, blocks)
    careful = reading.careful and evaluation.careful and single
    tile = evaluation.tile(blocks.rows.shape[-2])

    def tiled(one_tile: Callable) -> Callable:
        return lambda operands, blocks: over_tiles(
            lambda part: one_tile(part, blocks), operands, tile
        )

    one_tile = partial(_in_xla, laplacian=order > 1)
    in_xla = plain = tiled(one_tile)
    if careful:
        in_xla = _opaque(tiled(partial(_with_care, one_tile)), plain)
    target = _target(evaluation) if single else None
    if target is None:
        return in_xla(operands, blocks)
    how = dict(target=target, negligible=evaluation.negligible, careful=careful)
    native_jet = _opaque(partial(_native, order=order, **how), plain)
    if jax.default_backend() == "cpu":
        return native_jet(operands, blocks)
    return jax.lax.platform_dependent(operands, blocks, cpu=native_jet, default=in_xla)


def _over_devices(
    jet_of: Callable[[tuple, Blocks], Jet], over: Over, operands: tuple, blocks: Blocks
) -> Jet:
    """Return the jet of blocks that are divided over devices: each streams its own, then they merge."""
    mesh, axis = over

    def merged(operands: tuple, blocks: Blocks) -> Jet:
        return merge_over(jet_of(operands, blocks), axis)

    if is_bound(axis):  # in a shard_map of the queries
        return merged(operands, blocks)
    everywhere, divided = PartitionSpec(), PartitionSpec(axis)
    return jax.shard_map(
        merged, mesh=mesh, in_specs=(everywhere, divided), out_specs=everywhere, check_vma=False
    )(operands, blocks)


def _target(evaluation: Evaluation) -> str | None:
    """Return the native kernel's instruction set, or None where XLA is asked for or all there is."""
    if evaluation.kernel is None:
        return native.targets()[0] if native.targets() else None
    return None if evaluation.kernel == "xla" else evaluation.kernel


def _native(operands: Any, blocks: Blocks, *, order: int, **how: Any) -> Jet:
    x, alpha, variance, reading = operands
    times = (alpha, variance, *reading.coefficients(alpha))
    log_p, field, laplacian = native.jet(x, times, blocks, order=order, **how)
    nothing = jnp.zeros_like(x[:, : blocks.diffused])
    return Jet(log_p, field if order > 0 else nothing, laplacian if order > 1 else None)


def _in_xla(operands: Any, blocks: Blocks, *, laplacian: bool) -> Jet:
    """Return the jet of one tile of queries."""
    x, alpha, variance, reading = jax.tree.map(jnp.transpose, operands)

    @jax.checkpoint  # recompute tiles in reverse mode: memory must not grow with (queries x rows)
    def step(jet: Jet, block: Blocks) -> tuple[Jet, None]:
        block = _cast(block, x.dtype)
        new = block_jet(x, alpha, variance, block, reading, laplacian)
        return merge(jet, new, axis=0), None

    nothing = jnp.full_like(x, -jnp.inf, shape=x.shape[1:])
    start = Jet(
        nothing,
        jnp.zeros_like(x[: blocks.diffused]),
        jnp.zeros_like(nothing) if laplacian else None,
    )
    jet = jax.lax.scan(step, start, blocks)[0]
    return jet._replace(field=jet.field.T)


def _with_care(plain: Callable, operands: Any, blocks: Blocks) -> Jet:
    """Return ``plain`` of the operands, evaluated in float64 where float32 would lose digits."""

    def in_double(operands: Any, blocks: Blocks) -> Jet:
        with enable_x64(True):
            return _cast(plain(_cast(operands, jnp.float64), blocks), jnp.float32)

    x, alpha, variance, _ = operands
    needed = loses_digits(x, alpha, variance, blocks)
    return jax.lax.cond(needed, in_double, plain, operands, blocks)


def _opaque(function: Callable, plain: Callable) -> Callable:
    """Return ``function(operands, blocks)`` as one that JAX can transform.

    It can neither differentiate a foreign kernel nor transform float64 code where x64 is off:
    differentiation takes ``plain``. Under ``vmap`` over operands, all queries go to ``function`` in one call;
    over blocks, ``plain`` is taken too.
    """

    @jax.custom_batching.custom_vmap
    def batched(operands: Any, blocks: Blocks) -> Jet:
        return function(operands, blocks)

    @batched.def_vmap
    def _(size: int, is_batched: list, operands: Any, blocks: Blocks) -> tuple:
        if any(jax.tree.leaves(is_batched[1])):
            axes = jax.tree.map(lambda b: 0 if b else None, is_batched)
            out = jax.vmap(plain, in_axes=tuple(axes))(operands, blocks)
        else:
            queries = operands[0].shape[-2]

            def flat(leaf: Array, batched: bool) -> Array:
                leaf = leaf if batched else leaf[None]
                return jnp.broadcast_to(leaf, (size, queries, leaf.shape[-1])).reshape(
                    size * queries, -1
                )

            out = differentiable(jax.tree.map(flat, operands, is_batched[0]), blocks)
            out = jax.tree.map(lambda a: a.reshape(size, queries, *a.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    differentiable = jax.custom_jvp(batched)
    differentiable.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return differentiable


def loses_digits(x_t: Array, alpha: Array, variance: Array, blocks: Blocks) -> Array:
    """Return whether float32's rounding of the expanded square may reach 1e-4 in a logit.

    The logit ``-lambda |x - alpha m|^2 / 2`` is a difference of terms of size ``lambda |x|^2`` and
    ``lambda |alpha m|^2``, each rounded to one part in 2^24.
    """
    precision = 1 / (alpha**2 * blocks.variances.min() + variance)
    if blocks.given:
        scales = blocks.bases[:, blocks.diffused :, blocks.diffused :]
        precision = jnp.maximum(precision, jnp.max(jnp.sum(scales**2, (1, 2))))
    reach = jnp.max(jnp.sum(x_t**2, 1)) + jnp.max(alpha**2) * jnp.max(jnp.sum(blocks.centers**2, 1))
    return jnp.max(precision) * reach * 2.0**-24 > 1e-4


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
