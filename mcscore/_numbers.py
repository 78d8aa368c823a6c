"""Numbers as NumPy sees them, or a clear word about what is none."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

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
            raise ValueError(
                f"{name}: expected numbers, got categories{label(j)}; unordered categories are not "
                "modelled: fit one law per category"
            )
    try:
        array = np.asarray(x)
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


def points(x: Any, dimension: int, columns: Sequence[str] | None, name: str = "x") -> Any:
    """Return points as an array (b, d): of one point (d,) too, of a DataFrame by the names of its columns.

    Raises:
        ValueError: If there are not as many columns, or not those that the names ask for.

    >>> points([1.0, 2.0], 2, None).shape
    (1, 2)
    """
    own = getattr(x, "column_names", getattr(x, "columns", None))
    if (
        own is None
        and np.ndim(x) == 1
        and all(isinstance(c, str) for c in (x.index if hasattr(x, "to_frame") else [0]))
    ):
        own, x = list(x.index), x.to_frame().T  # a row of a DataFrame
    if columns is not None and own is not None:
        own = [str(c) for c in own]
        missing, more = set(columns) - set(own), set(own) - set(columns)
        if missing or more or len(own) > len(columns):
            missed = (
                f"without {_names(missing)}" if missing else f"with {_names(more or own)} besides"
            )
            raise ValueError(
                f"{name}: expected the columns {_names(columns)}, got a table {missed}"
            )
        x = numbers(x, name, own)[:, [own.index(c) for c in columns]]
    found = x if isinstance(x, jax.Array) else numbers(x, name, columns)
    found = found[None] if found.ndim == 1 and len(found) == dimension else found
    if found.ndim != 2 or found.shape[1] != dimension:
        raise ValueError(f"{name}: expected shape (b, {dimension}), got {found.shape}")
    return found


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def column_numbers(
    columns: Sequence[int | str] | np.ndarray, dimension: int, known: Sequence[str] | None
) -> list[int]:
    """Return the numbers of columns given by number or, where there are ``known`` names, by name.

    >>> column_numbers(["b", 0], 2, ["a", "b"])
    [1, 0]
    """
    if isinstance(columns, str) or any(isinstance(j, bool | np.bool_) for j in columns):
        raise ValueError(f"columns: expected a list of indices or names, got {columns!r}")
    names = {name: j for j, name in enumerate(known or ())}
    for name in columns:
        if isinstance(name, str) and name not in names:
            raise ValueError(
                f"columns: expected one of {_names(names) or 'no names'}, got {name!r}"
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


def _describe(x: Any) -> str:
    dtypes = getattr(x, "dtypes", None)
    if dtypes is not None and hasattr(dtypes, "items"):
        text = [f"{name!r} ({dtype})" for name, dtype in dtypes.items() if dtype.kind not in "iufb"]
        advice = "; unordered categories are not modelled: fit one law per category"
        return f"non-numeric columns {', '.join(text)}{advice}" if text else "a ragged table"
    return f"{type(x).__name__} of {getattr(x, 'dtype', 'mixed entries')}"
