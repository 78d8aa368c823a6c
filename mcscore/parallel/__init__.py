"""Work over several devices, by JAX's own meshes: rows of queries, and rows of the data."""

from mcscore.parallel.queries import (
    Over,
    Places,
    is_bound,
    joined_rows,
    over_queries,
    places_of,
    total,
    without_context,
)

__all__ = [
    "Over",
    "Places",
    "is_bound",
    "joined_rows",
    "over_queries",
    "places_of",
    "total",
    "without_context",
]
