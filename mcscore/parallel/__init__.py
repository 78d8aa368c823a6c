"""Work over several devices, by JAX's own meshes: rows of queries, and rows of the data."""

from mcscore.parallel.queries import (
    Over,
    Places,
    everywhere,
    is_bound,
    joined_rows,
    mesh_of,
    over_queries,
    own_share,
    places_of,
    total,
    without_context,
)

__all__ = [
    "Over",
    "Places",
    "everywhere",
    "is_bound",
    "joined_rows",
    "mesh_of",
    "over_queries",
    "own_share",
    "places_of",
    "total",
    "without_context",
]
