"""Functions of a table's columns that take NumPy arrays, keeping their float64, and JAX's alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 20_000  # rows: their temporaries stay in the cache


def library_of(x: Any) -> Any:
    """Return the array library of ``x``: NumPy, for which nothing is compiled, or ``jax.numpy``."""
    return np if isinstance(x, np.ndarray) else jnp


def like(parameter: Any, x: Any) -> Any:
    """Return ``parameter`` as an array of ``x``'s library and precision."""
    return library_of(x).asarray(parameter, dtype=x.dtype)


def on_device(arrays: Any, dtype: Any = None) -> Any:
    """Return a pytree of NumPy arrays as JAX's, cast on the host to ``dtype``, JAX's default float if None.

    No program is compiled for new shapes, as ``jnp.asarray`` does.
    """
    dtype = jax.dtypes.canonicalize_dtype(dtype or float)
    return jax.device_put(jax.tree.map(lambda a: np.asarray(a, dtype), arrays))


def in_chunks(function: Callable[[Any], Any], x: Any) -> Any:
    """Return ``function(x)``, of a large NumPy table computed in chunks of its rows."""
    if library_of(x) is jnp or len(x) <= CHUNK:
        return function(x)
    return np.concatenate([function(part) for part in np.array_split(x, -(-len(x) // CHUNK))])


def by_column(function: Callable[..., Any], x: Any, *tables: Any) -> Any:
    """Return ``function(library, column, *rows)`` of every column of ``x`` (b, d), stacked to (b, d).

    Args:
        function: Returns an array (b,) or a tuple of them.
        x: Table.
        *tables: Parameters, (d, ...): a row for every column.
    """
    rows = [like(table, x) for table in tables]
    if library_of(x) is jnp:
        axes = (1, *(0 for _ in rows))
        return jax.vmap(lambda *column: function(jnp, *column), axes, 1)(x, *rows)
    out = [function(np, *column) for column in zip(x.T, *rows, strict=True)]
    if isinstance(out[0], tuple):
        return tuple(np.stack(part, 1) for part in zip(*out, strict=True))
    return np.stack(out, 1)
