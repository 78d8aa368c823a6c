"""What columns are: continuous, on a lattice, of few levels, with atoms; found from their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mcscore._validation import Table
from mcscore.frames.bounded import NOWHERE
from mcscore.frames.lattice import lattice_of
from mcscore.frames.opened import FAR

FINE = 1e-4  # of the central range or of the rows: finer and rarer ties tell nothing
ATOM = 0.01  # of the rows: that many on one value are no accident
HEAVY = 5.0  # times what its neighborhood holds: such a value needs more room than it has
LEVELS = 12  # values of a column that are kept apart, at most
ENDS = (0, 1, 100, 24, np.pi, 2 * np.pi, 90, 180, 360)  # or their negatives: usual ends of columns
PERIODS = (24, 2 * np.pi, 360)


class Column(NamedTuple):
    """What was found of one column.

    Attributes:
        kind: In words.
        tied: Share of rows on a value that others have too.
        repeated: Which rows have a place to be drawn.
        level: The number of every row's value among the different ones.
        cells, rooms: Ends of every different value's interval, in the column and opened, (2, k).
        atoms: Which of them go into the frame's tables, (k,).
        unit: Measure of a tied value, (k,): 1 for an atom, else the width of its cell.
        apart: Whether its values may be strata.
        lattice: Origin, step, least and greatest value.
    """

    kind: str
    tied: float
    repeated: np.ndarray
    values: np.ndarray
    level: np.ndarray
    cells: np.ndarray
    rooms: np.ndarray
    atoms: np.ndarray
    unit: np.ndarray
    apart: bool
    lattice: tuple[float, float, float, float]

    @property
    def has_bare_atoms(self) -> bool:
        """Whether there are atoms right beside values that are as dense as elsewhere."""
        return bool((self.atoms & (self.cells[0] == self.cells[1])).any())


def column_of(x: np.ndarray, weights: np.ndarray) -> Column | None:
    """Return what is found of a column, None if it is continuous."""
    equal = np.ptp(weights) == 0  # then sorting does, and which row has which value can wait
    values, *level, counts = np.unique(x, return_inverse=not equal, return_counts=True)
    if len(values) < 2:
        return None
    mass = counts * weights[0] if equal else np.bincount(level[0], weights)
    gaps = np.diff(values)
    origin, step = lattice_of(values, counts)
    central = _central(values, mass)
    apart = np.maximum(np.append(0, gaps), np.append(gaps, 0)) >= FINE * central
    often = (counts > 1) & (apart | (counts >= FINE * len(x)))
    tied = float(mass[often].sum())
    if tied < 0.02:
        if not step:
            return None
        often[:] = False
    heavy = often & (mass >= ATOM) & (counts >= 5)
    rest = ~heavy
    several = bool(mass[rest & often].sum() > 0.5 * mass[rest].sum() or not rest.any())
    full = tied > 0.9 and (bool(step) or several)  # no other values than these
    few = full and len(values) <= LEVELS
    holes = step > 0 and len(values) < 0.5 * (np.ptp(values) / step + 1)
    if few or (full and holes and np.mean(counts >= 3) > 0.9):  # what lies between are no values
        step, several = 0.0, True
    if step:
        cells = values + step / 2 * np.array([[-1.0], [1.0]])
    elif several:
        below, above = np.append(gaps[:1], gaps) / 2, np.append(gaps, gaps[-1:]) / 2
        cells = np.stack([values - below, values + above])
    else:
        cells, often = np.stack([values, values]), heavy
    width = np.diff(cells, axis=0)[0]
    # The density of the rest, so that heavy values are as dense, but grow to twice its range at most.
    left = max(mass[rest].sum(), mass[heavy].sum() / 2)
    density = 0.9 * left / (_central(values[rest], mass[rest]) or central)
    if step or several:
        beside = np.maximum(np.append(0, mass[:-1]), np.append(mass[1:], 0))
        heavy &= (mass >= HEAVY * density * width) & (mass >= 3 * beside)
    grown = np.where(heavy, np.maximum(mass / density - width, 0), 0)
    shift = np.cumsum(grown) - grown
    rooms = cells + np.stack([shift, shift + grown])
    atoms = heavy.copy()
    if full and not step:
        atoms[:] = True
    ends = (values[0], values[-1])
    least, most = (
        end if full or (not width[k] and atoms[k]) else far
        for end, k, far in zip(ends, (0, -1), (-FAR, FAR), strict=True)
    )
    kind = _in_words(values, step, full, few, int(heavy.sum()), several)
    unit = np.where(width > 0, width, 1.0)
    separate = few or (not step and not several and 0 < heavy.sum() <= 3)
    lattice = (origin, step, least, most)
    (level,) = level or np.unique(x, return_inverse=True)[1:]
    return Column(
        kind, tied, often[level], values, level, cells, rooms, atoms, unit, separate, lattice
    )


def opened_end(column: Column, low: float, high: float, side: int) -> float:
    """Return where a column's end (side 0: ``low``, 1: ``high``) comes to lie when it is opened.

    What counts as a value within the ends does so wholly.
    """
    end = (low, high)[side]
    if abs(end) >= NOWHERE:
        return end
    origin, step = column.lattice[:2]
    if step:  # the outer end of the outermost step's cell
        whole = np.ceil if side == 0 else np.floor
        outermost = whole((end - origin) / step + (2 * side - 1) * 1e-6)
        end = origin + step * outermost + step * (side - 0.5)
    held = (column.values >= low) & (column.values <= high)
    k = np.flatnonzero(held)[-side]
    start, stop = column.cells[:, k]
    if start <= end <= stop or abs(end - column.cells[side, k]) <= 1e-6 * (stop - start):
        return float(column.rooms[side, k])
    before = column.cells[1] <= end
    shift = (column.rooms - column.cells)[1, before]
    return float(end + (shift[-1] if len(shift) else 0.0))


def _central(values: np.ndarray, mass: np.ndarray) -> float:
    """Return the width of the central nine tenths of sorted values, or of all if that is zero."""
    if len(values) < 2:
        return 0.0
    share = (np.cumsum(mass) - mass / 2) / mass.sum()
    low, high = np.interp([0.05, 0.95], share, values)
    return float(high - low) or float(np.ptp(values))


def _in_words(
    values: np.ndarray, step: float, full: bool, few: bool, heavy: int, several: bool
) -> str:
    parts = []
    if few:
        parts.append(f"{len(values)} levels")
    elif step:
        parts.append(f"steps of {step:.6g}")
    elif several:
        parts.append(f"{len(values)} values" if full else "repeated values")
    if heavy and not few:
        parts.append(f"{heavy} atom{'s' * (heavy > 1)}")
    return " with ".join(parts) or "repeated values"


def suspected(table: Table, known: Sequence[int]) -> dict[int, Any]:
    """Return which columns, but the ``known``, stop dead at a usual end, where rows do not thin out.

    The values are ends, as ``bounds=`` takes them, or a period, as ``periodic=`` does.

    >>> x = np.random.default_rng(1).random((500, 1))
    >>> suspected(Table.of(x), [])
    {0: (0, 1)}
    """
    found = {}
    for j, column in enumerate(table.values.T):
        if j in known or len(column) < 100:
            continue
        low, high = np.quantile(column, [0.05, 0.95])
        room, ends = 0.02 * (high - low), []
        for end, distance in (
            (column.min(), column - column.min()),
            (column.max(), column.max() - column),
        ):
            near = np.count_nonzero(distance <= room)
            usual = [u for u in (*ENDS, *(-e for e in ENDS[1:])) if abs(end - u) <= room]
            ends.append(usual[0] if usual and near >= max(5, 0.008 * len(column)) else None)
        if any(end is not None for end in ends):
            round_ = None not in ends and ends[1] - ends[0] in PERIODS
            found[j] = ends[1] - ends[0] if round_ else tuple(ends)
    return found
