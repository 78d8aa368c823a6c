"""Queries over the devices of a mesh: each device computes its own rows, and none waits for another.

Plain ``jit`` of sharded queries gives right results that are copied to every device, and explicit meshes
refuse (see diffrax's threads 735 and 765); ``shard_map`` around the whole computation does neither.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mcscore._arrays import is_traced
from mcscore._validation import of_type

Over = tuple[Mesh, str]  # a mesh, and the axis over which a law's blocks are divided
reshard = jax.sharding.reshard
NOWHERE = Mesh(np.empty((), object), ())
Places = tuple[Mesh | AbstractMesh, tuple[str, ...]]  # a mesh, and the axes over which queries are


def places_of(queries: Any, over: Over | None = None, mesh: Mesh | None = None) -> Places | None:
    """Return where rows of queries go: over the mesh given, else the context's, else their own.

    None where they stay on one device. The axis of a law's own blocks, ``over``, is left out.

    Raises:
        ValueError: If the law is divided over a mesh of other axes.
    """
    context = _context()
    if context is not None and context.manual_axes:  # in a shard_map already
        return None
    found: Any = context if mesh is None else mesh
    axes = None
    if mesh is not None:
        of_type(Mesh, "jax.make_mesh(...)", mesh=mesh)
    elif found is None:
        for leaf in jax.tree.leaves(queries):
            own = None if is_traced(leaf) else getattr(leaf, "sharding", None)
            if isinstance(own, NamedSharding) and own.spec and own.spec[0] is not None:
                found, names = own.mesh, own.spec[0]
                axes = (names,) if isinstance(names, str) else tuple(names)
                break
    if found is None:
        return None if over is None else (over[0], ())
    if over is not None and over[1] not in found.axis_names:
        raise ValueError(f"mesh: expected one with the law's axis {over[1]!r}, got {found}")
    taken = () if over is None else (over[1],)
    axes = tuple(a for a in (found.axis_names if axes is None else axes) if a not in taken)
    if over is None and prod(found.shape[a] for a in axes) == 1:
        return None
    return found, axes


def is_bound(axis: str) -> bool:
    """Return whether the program is one of a device along a mesh's axis, as within ``shard_map``."""
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def total(part: Array, over: Over | None) -> Array:
    """Return the sum of what devices along the law's axis have; outside of ``shard_map`` it is whole."""
    return part if over is None or not is_bound(over[1]) else jax.lax.psum(part, over[1])


def _context() -> Any:
    """Return the mesh that ``jax.set_mesh`` has set, if any; under ``jit`` it knows no devices."""
    context = jax.sharding.get_abstract_mesh()
    if context.empty:
        return None
    found: Any = getattr(jax.sharding, "get_mesh", None)  # since JAX 0.8
    try:
        return context if context.manual_axes or found is None else found()
    except ValueError:  # under jit
        return context


def mesh_of(mesh: Mesh | None) -> Mesh | None:
    """Return the mesh given, else the one that ``jax.set_mesh`` has set, if any."""
    if mesh is not None:
        of_type(Mesh, "jax.make_mesh(...)", mesh=mesh)
        return mesh
    context = _context()
    return context if isinstance(context, Mesh) else None


def everywhere(tree: Any, places: Places | None) -> Any:
    """Return arrays that every device has, for programs over the mesh; without one, as they are."""
    if places is None:
        return tree
    whole = NamedSharding(places[0], PartitionSpec())

    def put(a: Any) -> Any:  # from the host: other processes have the same
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(a)), impl=jax.random.key_impl(a)
            )
        return jax.device_put(np.asarray(a), whole)

    return jax.tree.map(put, tree)


def own_share(index: Array, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """Return a device's equal share of indices (n,), within ``shard_map``, and which of them count."""
    n, share = len(index), -(-len(index) // jax.lax.axis_size(axes))
    at = jax.lax.axis_index(axes) * share + jnp.arange(share)
    return index[jnp.minimum(at, n - 1)], at < n


def without_context() -> Any:
    """Return a context without a mesh: with one diffrax (0.7.2) takes its constants for arrays of it.

    Under ``jit`` that cannot be had.
    """
    return jax.set_mesh(NOWHERE) if isinstance(_context(), Mesh) else nullcontext()


def over_queries(
    function: Callable[..., Any],
    queries: tuple,
    rest: tuple,
    *static: Any,
    over: Over | None = None,
    places: Places | None = None,
    out_axes: Any = 0,
) -> Any:
    """Return ``function(*queries, *rest, *static)``, its rows computed where those of the queries are.

    Rows that the devices do not divide are padded by copies of the first, and cut.

    Args:
        function: Of a module, whose results have a row for each query and depend on no other.
        queries: Arrays with a row for each of ``len(queries[0])``, or one that stands for all.
        rest: What every device needs, on each of them; of a law that is divided, its own blocks.
        *static: Whatever else the function depends on, hashable.
        over: Mesh and axis over which the law's blocks are divided.
        places: Where the rows go; by default as ``places_of`` says.
        out_axes: Of each result (a prefix of their tree) the axis of rows; -1 where there is none.
    """
    places = places_of(queries, over) if places is None else places
    if places is None or len(queries[0]) == 0:
        return function(*queries, *rest, *static)
    (mesh, axes), n = places, len(queries[0])
    more = -n % prod(mesh.shape[a] for a in axes)
    if more:
        queries = jax.tree.map(partial(_longer, n, more), queries)
    rows = jax.tree.map(lambda a: jnp.ndim(a) > 0 and len(a) == n + more, queries)
    leaves, tree = jax.tree.flatten(rows)
    is_row, axis = (tuple(leaves), tree), None if over is None else over[1]
    with without_context():
        out = _mapped(function, places, axis, is_row, out_axes, static, queries, rest)
    if not more:
        return out

    def cut(at: int, part: Any) -> Any:
        return part if at < 0 else jax.tree.map(partial(_cut, mesh, at, n), part)

    return jax.tree.map(cut, out_axes, out)


def joined_rows(parts: list[Array], n: int, places: Places | None) -> Array:
    """Return the first ``n`` rows of all parts, over the devices if these divide ``n``, else on each."""
    if places is None:
        return jnp.concatenate(parts)[:n]
    with without_context():
        return _joined(parts, n, places)


@partial(jax.jit, static_argnums=(1, 2))
def _joined(parts: list[Array], n: int, places: Places) -> Array:
    mesh, axes = places
    whole = NamedSharding(mesh, PartitionSpec())
    divides = n % prod(mesh.shape[a] for a in axes) == 0
    found = NamedSharding(mesh, PartitionSpec(axes or None)) if divides else whole
    if AxisType.Explicit not in mesh.axis_types:
        return jax.lax.with_sharding_constraint(jnp.concatenate(parts)[:n], found)
    return reshard(jnp.concatenate([reshard(part, whole) for part in parts])[:n], found)


def _longer(n: int, more: int, a: Array) -> Array:
    if jnp.ndim(a) == 0 or len(a) != n:
        return a
    return jnp.concatenate([a, jnp.broadcast_to(a[:1], (more, *a.shape[1:]))])


def _cut(mesh: Mesh | AbstractMesh, axis: int, n: int, a: Array) -> Array:
    """Return the first ``n`` rows, on every device: they cannot be divided."""
    if isinstance(mesh, AbstractMesh):
        a = reshard(a, PartitionSpec())
    elif is_traced(a) and AxisType.Explicit in mesh.axis_types:
        a = reshard(a, NamedSharding(mesh, PartitionSpec()))
    elif not is_traced(a):
        a = jax.device_put(a, NamedSharding(mesh, PartitionSpec()))
    return jax.lax.slice_in_dim(a, 0, n, axis=axis)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _mapped(function, places, over, is_row, out_axes, static, queries, rest) -> Any:
    (mesh, axes), everywhere = places, PartitionSpec()
    along = axes or None

    def of_law(path: Any, _: Any) -> PartitionSpec:
        blocks = any(getattr(step, "name", None) == "blocks" for step in path)
        return PartitionSpec(over) if blocks and over is not None else everywhere

    rows = jax.tree.unflatten(is_row[1], is_row[0])
    specs = jax.tree.map(lambda row: PartitionSpec(along) if row else everywhere, rows)
    own = jax.tree_util.tree_map_with_path(of_law, rest)
    if AxisType.Explicit in mesh.axis_types:  # which moves nothing unasked
        queries, rest = jax.tree.map(
            lambda a, spec: reshard(a, NamedSharding(mesh, spec)), (queries, rest), (specs, own)
        )
    outs = jax.tree.map(
        lambda at: everywhere if at < 0 else PartitionSpec(*[None] * at, along), out_axes
    )
    return jax.shard_map(
        lambda queries, rest: function(*queries, *rest, *static),
        mesh=mesh, in_specs=(specs, own), out_specs=outs, check_vma=False,
    )(queries, rest)  # fmt: skip
