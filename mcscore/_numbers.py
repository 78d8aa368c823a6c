"""Numbers as NumPy sees them, or a clear word about what is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def _describe(x: Any) -> str:
    dtypes = getattr(x, "dtypes", None)
    if dtypes is not None and hasattr(dtypes, "items"):
        text = [f"{name!r} ({dtype})" for name, dtype in dtypes.items() if dtype.kind not in "iufb"]
        return f"non-numeric columns {', '.join(text)}" if text else "a ragged table"
    return f"{type(x).__name__} of {getattr(x, 'dtype', 'mixed entries')}"
