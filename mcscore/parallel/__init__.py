"""Work over several devices, by JAX's own meshes: rows of queries, and rows of the data."""

from mcscore.parallel.queries import Over, Places, over_queries, places_of

__all__ = ["Over", "Places", "over_queries", "places_of"]
