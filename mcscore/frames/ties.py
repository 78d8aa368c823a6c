"""Ties: integers, lattices and atoms spread over their gaps before fitting, and put back on draws.

A density on a column with equal values has no bound: likelihood could be bought by sharpening on them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from mcscore._arrays import by_column, host_generator

FINE = 1e-4  # of the central range or of the rows: finer and rarer ties tell nothing


class Dequantized(NamedTuple):
    """A table without ties, the share of tied rows of each column that had some, and ``Frame.ties``."""

    x: np.ndarray
    share: dict[int, float]
    ties: np.ndarray | None


def dequantized(key: Array, x: np.ndarray) -> Dequantized:
    """Return ``x`` with ties spread uniformly, and what it takes to put draws back on them.

    A column counts if more than 2 % of its rows share their value with another row. Values closer to both
    neighbors than 1e-4 of the central range, such as millions of float32 numbers meet by rounding, only
    count if 1e-4 of the rows share them. Each tied value is spread over half the gap to its neighbors,
    but over no less than 1 % of the central range.
    Draws go back to every value of a lattice (a column with nine tied rows in ten), whose ends take
    all that lies beyond, and to atoms of at least 1 % of the rows in other columns.
    """
    generator = host_generator(key)
    out, share, ties = x, {}, {}
    for j, column in enumerate(x.T):
        if np.mean(np.diff(np.sort(column)) == 0) < 0.01:
            continue
        values, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        central, gaps = np.ptp(np.quantile(column, [0.05, 0.95])), np.diff(values)
        apart = np.maximum(np.append(0, gaps), np.append(gaps, 0)) >= FINE * central
        repeated = ((counts > 1) & (apart | (counts >= FINE * len(column))))[inverse]
        if repeated.mean() < 0.02 or len(values) < 2:
            continue
        share[j] = float(repeated.mean())
        gaps = np.maximum(gaps, 0.01 * central)
        below, above = np.append(gaps[:1], gaps) / 2, np.append(gaps, gaps[-1:]) / 2
        u = generator.random(len(column))
        moved = column - below[inverse] + u * (below + above)[inverse]
        out = x.copy() if out is x else out
        out[:, j] = np.where(repeated, moved, column)
        lower, upper = values - below, values + above
        if lattice := share[j] > 0.9:
            lower[0], upper[-1] = -np.inf, np.inf
        kept = np.full(len(values), True) if lattice else counts >= 0.01 * len(column)
        ties[j] = np.stack([values, lower, upper])[:, kept]
    if not sum(part.shape[1] for part in ties.values()):
        return Dequantized(out, share, None)
    table = np.full((3, x.shape[1], max(part.shape[1] for part in ties.values())), np.inf)
    for j, part in ties.items():
        table[:, j, : part.shape[1]] = part
    return Dequantized(out, share, table)


def tied(x: Any, ties: Any) -> Any:
    """Return draws ``x`` (b, d) with every value in the interval of a tie put back on it.

    Args:
        x: Draws.
        ties: Values and ends of their intervals, (3, d, m), padded with inf.
    """
    return by_column(_tied, x, *ties)


def _tied(library: Any, x: Any, values: Any, lower: Any, upper: Any) -> Any:
    nearest = library.searchsorted((values[1:] + values[:-1]) / 2, x)
    inside = (lower[nearest] <= x) & (x <= upper[nearest])
    return library.where(inside, values[nearest], x)
