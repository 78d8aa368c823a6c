"""Numbers as NumPy sees them, or a clear word about what is none."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcscore._arrays import is_traced, on_host

CATEGORIES = "unordered categories are not modelled: fit one law per category"
DATES = "expected numbers, got dates{}; subtract a start and divide by a unit of time"


def numbers(x: Any, name: str = "x", columns: Sequence[str] | None = None) -> np.ndarray:
    """Return what NumPy sees in ``x``, checked to be numbers and all of them.

    Raises:
        ValueError: If entries are masked, missing, dates, categories or words, naming the column.

    >>> numbers([[1, 2]]).dtype.kind
    'i'
    """

    def label(j: int) -> str:
        return f" in column {columns[j]!r}" if columns is not None else f" in column {j}"

    mask = np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) else np.zeros(0)
    if mask.any():
        at = np.argwhere(mask)[0].tolist()
        raise ValueError(
            f"{name}: expected all numbers, got a masked entry{label(at[-1])}, row {at[0]}; leave it out"
        )
    for j, dtype in enumerate(getattr(x, "dtypes", ()) if hasattr(x, "columns") else ()):
        if getattr(dtype, "kind", "f") in "mM":
            raise ValueError(f"{name}: {DATES.format(label(j))}")
        if str(dtype).lower() in ("category", "categorical"):
            raise ValueError(f"{name}: expected numbers, got categories{label(j)}; {CATEGORIES}")
    try:
        array = on_host(x)
        dates = array.dtype.kind in "mM"
        if not dates and (array.dtype.kind not in "fiubc" or array.dtype == np.longdouble):
            array = array.astype(np.float64)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    except (TypeError, ValueError) as error:
        missing = getattr(x, "isna", None)  # of pandas
        if missing is not None and (gone := np.asarray(missing())).ndim == 2 and gone.any():
            row, j = np.argwhere(gone)[0].tolist()
            raise ValueError(
                f"{name}: expected all numbers, got a missing entry{label(j)}, row {row}; leave such rows out"
            ) from error
        raise ValueError(f"{name}: expected a table of numbers, got {_describe(x)}") from error
    if dates:
        raise ValueError(f"{name}: {DATES.format('')}")
    return array


def as_numbers(values: Any, dtype: Any, name: str) -> Any:
    """Return ``values`` as an array of one precision, NumPy's unless traced; ``ValueError`` if none."""
    if any(map(is_traced, jax.tree.leaves(values))):
        return jnp.asarray(values, dtype)
    try:
        return np.asarray(values).astype(np.float64).astype(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {described(values)}") from error


def points(x: Any, dimension: int, columns: Sequence[str] | None, name: str = "x") -> Any:
    """Return points as an array (b, d): of one point (d,) too, of a DataFrame by the names of its columns.

    Raises:
        ValueError: If there are not as many columns, or not those that the names ask for.

    >>> points([1.0, 2.0], 2, None).shape
    (1, 2)
    """
    own = names_of(x)
    if own is not None and np.ndim(x) == 1:
        x = np.asarray(x)[None]  # a row of a DataFrame
    if columns is not None and own is not None:
        expected = f"{name}: expected the columns {_listed(columns)}"
        for column in columns:
            if (count := own.count(column)) != 1:
                raise ValueError(f"{expected}, got {count or 'no'} {column!r}")
        if more := [column for column in own if column not in columns]:
            raise ValueError(f"{expected}, got {more[0]!r} besides")
        x = numbers(x, name, own)[:, [own.index(c) for c in columns]]
    found = x if isinstance(x, jax.Array) else numbers(x, name, columns)
    found = found[None] if found.ndim == 1 and len(found) == dimension else found
    if found.ndim != 2 or found.shape[1] != dimension:
        raise ValueError(f"{name}: expected shape (b, {dimension}), got {found.shape}")
    return found


def names_of(x: Any) -> list[str] | None:
    """Return the names of the columns of a DataFrame, an Arrow table, or one of its rows; None without any.

    >>> names_of(np.zeros((2, 2)))
    """
    if hasattr(x, "to_frame") and hasattr(x, "index"):  # a Series
        return list(x.index) if all(isinstance(name, str) for name in x.index) else None
    found = getattr(x, "column_names", getattr(x, "columns", None))  # Arrow's columns are data
    return None if found is None else list(map(str, found))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def column_numbers(
    columns: Sequence[int | str] | np.ndarray, dimension: int, known: Sequence[str] | None
) -> list[int]:
    """Return the numbers of columns given by number or, where there are ``known`` names, by name.

    >>> column_numbers(["b", 0], 2, ["a", "b"])
    [1, 0]
    """
    listed = isinstance(columns, Iterable) and not isinstance(columns, str) and np.ndim(columns)
    if not listed or any(isinstance(j, bool | np.bool_) for j in columns):
        raise ValueError(f"columns: expected a list of indices or names, got {described(columns)}")
    names = {name: j for j, name in enumerate(known or ())}
    for name in columns:
        if isinstance(name, str) and name not in names:
            raise ValueError(
                f"columns: expected one of {_listed(names) or 'numbers (no names)'}, got {name!r}"
            )
    try:
        found = [names[j] if isinstance(j, str) else operator.index(j) for j in columns]
    except TypeError as error:
        raise ValueError(f"columns: expected indices or names, got {columns!r}") from error
    distinct = set(found) & set(range(dimension))
    if not distinct or len(distinct) < len(found):
        raise ValueError(
            f"columns: expected distinct indices from 0 to {dimension - 1}, got {found}"
        )
    return found


def described(value: Any) -> str:
    """Return what an error says of a value that does not fit: in one short line.

    >>> described("three"), described(np.zeros((2, 3)))
    ("'three'", 'ndarray of shape (2, 3)')
    """
    shape, text = getattr(value, "shape", ()), repr(value)
    if len(text) <= 80 and "\n" not in text and not shape:
        return text
    return f"{type(value).__name__}{f' of shape {shape}' if shape else ''}"


def _describe(x: Any) -> str:
    dtypes = getattr(x, "dtypes", None)
    if dtypes is not None and hasattr(dtypes, "items"):
        text = [f"{name!r} ({dtype})" for name, dtype in dtypes.items() if dtype.kind not in "iufb"]
        return f"non-numeric columns {', '.join(text)}; {CATEGORIES}" if text else "a ragged table"
    return f"{type(x).__name__} of {getattr(x, 'dtype', 'mixed entries')}"
