"""Missing values, filled in by exact draws from the law of what is missing given what is known."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import on_device, rounded_up
from mcscore._numbers import names_of, numbers, points
from mcscore._validation import as_key, at_least, of_type
from mcscore.jet.sampling import draw_given
from mcscore.mixtures.conditional import ConditionalMixture, conditional_of
from mcscore.mixtures.value import Mixture


def impute(
    key: Array, law: Mixture, rows: Any, *, draws: int = 1
) -> Float[np.ndarray, "draws n d"]:
    """Return ``draws`` tables (draws, n, d) with every NaN of ``rows`` drawn given what its row knows.

    Exact for the law: a mixture given some of its columns is a mixture. Rows of one pattern of NaN are
    drawn together, O(n_missing rows d) time for each draw; a row of which nothing is known is a draw from
    the law. A tied value that is known stands for one of sixteen places in its interval, drawn by how likely
    each is: an approximation.

    Args:
        key: Random key.
        law: The law of all columns, with a density.
        rows: (n, d), NaN where missing; a DataFrame's columns are taken by their names, if the law has any.
        draws: How many draws of each missing entry.

    Raises:
        ValueError: If ``rows`` have other columns than the law, or hold infinities; if the law has no
            density.

    >>> import mcscore as mcs
    >>> x = np.random.default_rng(0).standard_normal((300, 2)) @ [[1, 0.9], [0, 0.4]]
    >>> law = mcs.mixture(x, kernel=mcs.Whitened(0.3, preserve=True))
    >>> filled = impute(jax.random.key(0), law, [[1.0, np.nan], [0.5, 0.5]], draws=3)
    >>> filled.shape, filled[:, 0, 0].tolist()
    ((3, 2, 2), [1.0, 1.0, 1.0])
    """
    of_type(Mixture, "mcs.mixture(x, kernel=mcs.Auto())", law=law)
    at_least(1, draws=draws)
    law.require_width("impute")
    key = as_key(key)
    names = law.columns if names_of(rows) is not None else None
    table = np.asarray(points(with_nan(rows), law.dimension, names, "rows"))
    check_finite(table)
    table = table if np.issubdtype(table.dtype, np.floating) else table.astype(np.float64)
    filled = np.repeat(table[None], draws, 0)
    missing = np.isnan(table)
    patterns, of_row = np.unique(missing, axis=0, return_inverse=True)
    for pattern, lost in enumerate(patterns):
        if not lost.any():
            continue
        index = np.flatnonzero(of_row.reshape(-1) == pattern)
        own = jax.random.fold_in(key, zlib.crc32(np.packbits(lost).tobytes()))
        found = _drawn(own, law, np.tile(table[index], (draws, 1)), lost)
        for j, column in zip(np.flatnonzero(lost), found.T, strict=True):
            filled[:, index, j] = column.reshape(draws, len(index))
    return filled


def with_nan(rows: Any) -> Any:
    """Return rows, checked to be numbers, in which what pandas and NumPy say is missing is NaN."""
    if isinstance(rows, np.ma.MaskedArray):
        gone, rows = np.ma.getmaskarray(rows), np.ma.filled(rows, 0)
        return np.where(gone, np.nan, numbers(rows, "rows"))
    if hasattr(rows, "isna") and hasattr(rows, "iloc"):  # pandas, whose NA is no number
        rows = rows.to_frame().T if rows.ndim == 1 else rows
        names, gone = names_of(rows), rows.isna()
        numbers(rows.iloc[:0], "rows", names)  # no dates, no categories
        found = np.where(gone, np.nan, numbers(rows.mask(gone, 0), "rows", names))
        return type(rows)(found, columns=rows.columns)
    return rows


def check_finite(table: np.ndarray) -> None:
    """Raise ``ValueError`` if a table with NaN holds infinities or complex numbers."""
    if np.iscomplexobj(table):
        raise ValueError(f"rows: expected real numbers, got {table.dtype}")
    if (bad := np.argwhere(np.isinf(table))).size:
        row, column = bad[0].tolist()
        raise ValueError(
            f"rows: expected numbers or NaN, got {table[row, column]} in column {column}, row {row}"
        )


def _drawn(key: Array, law: Mixture, table: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Return a draw (n, m) of what is lost of every row of a table (n, d)."""
    n = len(table)
    if lost.all():
        return np.asarray(law.sample(key, n))
    columns, given = (np.flatnonzero(which).tolist() for which in (lost, ~lost))
    part = conditional_of(law, columns, given)
    known = np.pad(table[:, given], ((0, rounded_up(n) - n), (0, 0)), mode="edge")
    part.conditions(known)  # checks them
    places, gain = part.prior.frame.places(np.asarray(known, np.float64))
    places, gain = on_device((places, gain), law.dtype)
    place_key, key = jax.random.split(key)
    y = np.asarray(_drawn_at(place_key, key, part, places, gain)[:n], np.float64)
    return part.frame.restore(part.frame.inverse(y))  # on the host: nothing is compiled


@jax.jit
def _drawn_at(
    place_key: Array, key: Array, law: ConditionalMixture, places: Array, gain: Array
) -> Array:
    """Return a draw given each condition, at one of the places (p, b, k) where it can be."""
    p, b, k = places.shape
    log_p = law.log_evidence(places.reshape(-1, k)).reshape(p, b) + gain
    place = jax.random.categorical(place_key, log_p, axis=0)
    return draw_given(key, law.blocks, places[place, jnp.arange(b)])
