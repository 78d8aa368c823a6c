"""Missing values, filled in by exact draws from the law of what is missing given what is known."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import host_generator, rounded_up
from mcscore._numbers import names_of, numbers, points
from mcscore._validation import Table, as_key, at_least, of_type
from mcscore.jet.sampling import draw_given
from mcscore.mixtures.building import mixture
from mcscore.mixtures.conditional import conditional_of
from mcscore.mixtures.value import Mixture

ROUNDS = 3


def impute(
    key: Array, law: Mixture, rows: Any, *, draws: int = 1
) -> Float[np.ndarray, "draws n d"]:
    """Return ``draws`` tables (draws, n, d) with every NaN of ``rows`` drawn given what its row knows.

    Exact for the law: a mixture given some of its columns is a mixture. Rows of one pattern of NaN are
    drawn together, O(n_missing rows d) time for each draw; a row of which nothing is known is a draw from
    the law. Tied values that are known stand for the middle of their intervals: an approximation.

    Args:
        key: Random key.
        law: Of all columns, with a density.
        rows: (n, d), NaN where missing; a DataFrame's columns are taken by their names, if the law has any.
        draws: Of each missing entry.

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
    table = np.asarray(points(_with_nan(rows), law.dimension, names, "rows"))
    table = table if np.issubdtype(table.dtype, np.floating) else table.astype(np.float64)
    _check_finite(table)
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


def mixture_of_incomplete(
    key: Array,
    rows: Any,
    *,
    rounds: int = ROUNDS,
    weights: Any = None,
    groups: Any = None,
    **options: Any,
) -> Mixture:
    """Return the law of rows of which some entries are missing: all take part with what they know.

    Right where entries are missing for reasons that the row's other entries tell ("at random"); the law of
    the complete rows alone then is not. By stochastic EM (Celeux and Diebolt 1985): what is missing is
    drawn from the law of the round before, exactly, and the law built anew. An approximation: what a row
    lacks stands in the law as one draw, so held-out likelihoods count draws as data.

    Args:
        key: Random key.
        rows: (n, d), NaN (or masked, or pandas' NA) where missing. At first the law is that of the complete
            rows; where they are few, what is missing is drawn from its column.
        rounds: How often what is missing is drawn anew.
        weights: Of the rows, (n,).
        groups: Of the rows, (n,), see ``mixture``.
        **options: Of ``mixture``, but for ``condition``: condition the law instead.

    Raises:
        ValueError: If a column or a row holds no number, or ``rows`` hold infinities; as ``mixture``.

    >>> import mcscore as mcs
    >>> x = np.random.default_rng(0).standard_normal((300, 2)) @ [[1, 0.9], [0, 0.4]]
    >>> x[x[:, 0] > 0.5, 1] = np.nan
    >>> law = mixture_of_incomplete(jax.random.key(0), x, kernel=mcs.Whitened(0.3, preserve=True))
    >>> drawn = law.sample(jax.random.key(1), 5000)  # of columns with mean 0
    >>> bool(np.nanmean(x[:, 1]) < -0.3 < drawn[:, 1].mean())
    True
    """
    at_least(1, rounds=rounds)
    if options.get("condition") is not None:
        raise ValueError("condition: expected None; condition the law of all columns instead")
    key, names = as_key(key), names_of(rows)
    table = np.array(numbers(_with_nan(rows), "rows", names), np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"rows: expected a non-empty table (n, d), got shape {table.shape}")
    _check_finite(table)
    lost = np.isnan(table)
    for axis, what in enumerate(("column", "row")):
        for j in np.flatnonzero(lost.all(axis)):
            raise ValueError(f"rows: expected a number in every {what}, got none in {what} {j}")

    def learned(k: int, known: Any) -> Mixture:
        share, own = (None if a is None else np.asarray(a)[known] for a in (weights, groups))
        part = Table.of(table[known], share, columns=names, name="rows")
        return mixture(part, groups=own, key=jax.random.fold_in(key, k), **options)

    for name, given in (("weights", weights), ("groups", groups)):
        if given is not None and np.shape(given) != (len(table),):
            raise ValueError(f"{name}: expected shape ({len(table)},), got {np.shape(given)}")
    whole, complete = np.ones(len(table), bool), ~lost.any(1)
    if complete.all():
        return learned(0, whole)
    few = complete.sum() < max(50, 10 * table.shape[1])
    if few:
        r = host_generator(jax.random.fold_in(key, rounds))
        for column, gone in zip(table.T, lost.T, strict=True):
            column[gone] = r.choice(column[~gone], gone.sum())
    law = learned(0, whole if few else complete)
    for k in range(1, rounds + 1):
        holes = np.where(lost, np.nan, table)
        table[:] = impute(jax.random.fold_in(key, rounds + k), law, holes)[0]
        law = learned(k, whole)
    return law


def _check_finite(table: np.ndarray) -> None:
    if (bad := np.argwhere(np.isinf(table))).size:
        row, column = bad[0].tolist()
        raise ValueError(
            f"rows: expected numbers or NaN, got {table[row, column]} in column {column}, row {row}"
        )


def _with_nan(rows: Any) -> Any:
    """Return rows in which what pandas and NumPy say is missing is NaN."""
    if isinstance(rows, np.ma.MaskedArray):
        return np.ma.filled(rows.astype(np.float64), np.nan)
    if hasattr(rows, "to_numpy") and hasattr(rows, "isna"):  # pandas, whose NA is no number
        return type(rows)(rows.to_numpy(np.float64, na_value=np.nan), columns=rows.columns)
    return rows


def _drawn(key: Array, law: Mixture, table: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Return a draw (n, m) of what is lost of every row of a table (n, d)."""
    n = len(table)
    if lost.all():
        return np.asarray(law.sample(key, n))
    columns, given = (np.flatnonzero(which).tolist() for which in (lost, ~lost))
    part = conditional_of(law, columns, given)
    known = np.pad(table[:, given], ((0, rounded_up(n) - n), (0, 0)), mode="edge")
    y = draw_given(key, part.blocks, part.conditions(known))[:n]
    y = np.asarray(y, np.float64)  # nothing is compiled for the frame
    return part.frame.restore(part.frame.inverse(y))
