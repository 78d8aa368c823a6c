"""Laws whose rows are divided over devices: each streams its own blocks, and their jets merge."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcscore._validation import of_type
from mcscore.jet.blocks import Blocks


def shard(law: Any, mesh: Mesh, axis: str | None = None) -> Any:
    """Return the law with its blocks divided over the devices along a mesh's axis.

    Every evaluation is then one pass of each device over its own rows and three reductions, of one, ``d`` and
    (for Laplacians) one number per query, whatever the number of rows. Queries may go over the other axes.

    Args:
        law: A mixture, conditional or not.
        mesh: Of ``jax.make_mesh``.
        axis: Its axis; by default the last.

    Raises:
        ValueError: If the mesh has no such axis, or the law is none, or divided already.

    >>> import mcscore as mcs
    >>> law = mcs.mixture(np.eye(2), kernel=mcs.Isotropic(0.5))
    >>> over = shard(law, jax.make_mesh((1,), ("rows",)))
    >>> bool(np.allclose(over.log_prob([[0.0, 0.0]]), law.log_prob([[0.0, 0.0]])))
    True
    """
    of_type(Mesh, 'jax.make_mesh((4,), ("rows",))', mesh=mesh)
    if not hasattr(law, "evaluation"):
        raise ValueError(f"law: expected a mixture, got {type(law).__name__}")
    name = str(mesh.axis_names[-1]) if axis is None else axis
    if name not in mesh.axis_names:
        raise ValueError(f"axis: expected one of {mesh.axis_names}, got {axis!r}")
    if law.evaluation.over is not None:
        raise ValueError(f"law: divided over {law.evaluation.over[1]!r} already")
    return _divided(law, mesh, name)


def _divided(law: Any, mesh: Mesh, axis: str) -> Any:
    changed: dict[str, Any] = {}
    for field in fields(law):
        value = getattr(law, field.name)
        if isinstance(value, Blocks):
            changed[field.name] = _blocks(value, mesh, axis)
        elif is_dataclass(value) and hasattr(value, "evaluation"):
            changed[field.name] = _divided(value, mesh, axis)
    evaluation = replace(law.evaluation, over=(mesh, axis))
    return replace(law, **changed, evaluation=evaluation)


def _blocks(blocks: Blocks, mesh: Mesh, axis: str) -> Blocks:
    """Return blocks, filled up by empty ones to as many as the devices divide."""
    more, place = -len(blocks.rows) % mesh.shape[axis], NamedSharding(mesh, PartitionSpec(axis))

    def laid(name: str) -> Any:
        value = getattr(blocks, name)
        if value is None:
            return None
        value = np.asarray(value)
        last = np.repeat(value[-1:], more, 0)
        last = np.full_like(last, -np.inf) if name == "log_weights" else last
        return jax.device_put(np.concatenate([value, last]), place)

    names = ("rows", "log_weights", "centers", "bases", "variances")
    return replace(blocks, **{name: laid(name) for name in names})
