"""Work over several devices, by JAX's own meshes: rows of queries, and rows of the data."""

from mcscore.parallel.queries import (
    Over,
    Places,
    joined_rows,
    over_queries,
    places_of,
    without_context,
)

__all__ = ["Over", "Places", "joined_rows", "over_queries", "places_of", "without_context"]
