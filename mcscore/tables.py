"""Checks of what the user hands in: tables of finite numbers, rows' weights, values not yet known."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
from jaxtyping import Float


def as_table(x: Any, name: str = "x") -> tuple[Float[np.ndarray, "n d"], Any]:
    """Return ``x`` as float64 (n, d) and the precision it came with; ``ValueError`` says what is wrong."""
    columns = getattr(x, "columns", None)  # a DataFrame's own names read better than numbers
    try:
        array = np.asarray(x)
        table = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a table of numbers, got {_describe(x)}") from error
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(
            f"{name}: expected a non-empty table (rows, columns), got shape {table.shape}"
        )
    if np.iscomplexobj(array):
        raise ValueError(f"{name}: expected real numbers, got {array.dtype}")
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        label = column if columns is None else repr(columns[column])
        raise ValueError(
            f"{name}: expected finite numbers, got {table[row, column]} in column {label}, row {row} "
            f"({len(np.unique(bad[:, 0]))} rows affected)"
        )
    floating = np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize >= 4
    dtype = jax.dtypes.canonicalize_dtype(array.dtype if floating else np.float64)
    largest = np.abs(table).max(0)
    if (largest > np.sqrt(np.finfo(dtype).max)).any():
        raise ValueError(
            f"{name}: values of column {int(np.argmax(largest))} reach {largest.max():.3g}, whose square "
            f"overflows {dtype}; rescale the column"
        )
    return table, dtype


def as_weights(weights: Any, n: int) -> np.ndarray:
    """Return ``weights`` of ``n`` rows, equal if None, with sum 1; ``ValueError`` says what is wrong."""
    weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"weights: expected shape ({n},), one per row, got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights: expected finite, non-negative numbers, not all zero")
    return weights / weights.sum()


def warn_of_units(table: np.ndarray) -> None:
    """Warn where one column spreads a thousand times as far as another: no one kernel fits both."""
    spreads = np.where(np.ptp(table, 0) > 0, table.std(0), 0)  # a constant's may be rounding
    wide, narrow = int(spreads.argmax()), int(np.where(spreads > 0, spreads, np.inf).argmin())
    if spreads[wide] > 1000 * spreads[narrow] > 0:
        warnings.warn(
            f"x: column {wide} spreads {spreads[wide] / spreads[narrow]:.1g} times as far as column "
            f"{narrow}, whose structure one kernel for both blurs; frame=mcs.Affine() standardises them",
            stacklevel=3,
        )


def rounded_up(size: int) -> int:
    """Return ``size`` rounded up to one of few: 4, 5, 6 or 7 times a power of two, at least 64.

    Arrays of these many rows share compiled programs, at the price of a quarter more work at most.

    >>> [rounded_up(n) for n in (1, 65, 81, 1000, 5000)]
    [64, 80, 96, 1024, 5120]
    """
    step = 1 << max(4, (size - 1).bit_length() - 3)
    return max(64, -(-size // step) * step)


def is_traced(value: Any) -> bool:
    """Return whether ``value`` is only known inside a transformation, so that it cannot be checked."""
    return isinstance(value, jax.core.Tracer)  # type: ignore[attr-defined]


def is_zero(value: Any) -> bool:
    """Return whether the number ``value`` is known to be zero; under ``jit``, ``==`` would be traced."""
    return not is_traced(value) and float(value) == 0


def _describe(x: Any) -> str:
    dtypes = getattr(x, "dtypes", None)
    if dtypes is not None and hasattr(dtypes, "items"):
        text = [f"{name!r} ({dtype})" for name, dtype in dtypes.items() if dtype.kind not in "iufb"]
        return f"non-numeric columns {', '.join(text)}" if text else "a ragged table"
    return f"{type(x).__name__} of {getattr(x, 'dtype', 'mixed entries')}"
