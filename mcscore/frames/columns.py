"""What columns are: continuous, on a lattice, of few levels, with atoms; with ends and periods, as told."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mcscore._numbers import column_numbers
from mcscore._validation import Table
from mcscore.frames.bounded import NOWHERE, SLACK, PeriodicFrame
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
    values, level, counts = np.unique(x, return_inverse=True, return_counts=True)
    if len(values) < 2:
        return None
    mass, gaps = np.bincount(level, weights), np.diff(values)
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
    if few or (full and holes and np.mean(counts >= 3) > 0.9):  # these values and no others
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
    if few or (full and not step):
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
    repeated = often[level]
    return Column(kind, tied, repeated, values, level, cells, rooms, atoms, unit, separate, lattice)


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


def bounds_of(bounds: Mapping[Any, Any] | None, table: Table) -> np.ndarray | None:
    """Return the ends (2, d) that ``bounds`` gives to the table's columns, by name or number.

    Raises:
        ValueError: If a column is not there, its ends are no (low, high), or a row lies outside.

    >>> bounds_of({1: (0, None)}, Table.of([[1.0, 2.0]])).tolist()
    [[-1e+37, 0.0], [1e+37, 1e+37]]
    """
    if not bounds:
        return None
    ends = np.array([[-NOWHERE], [NOWHERE]]) * np.ones(table.values.shape[1])
    for j, given in zip(_columns("bounds", bounds, table), bounds.values(), strict=True):
        try:
            low, high = (
                far if end is None else _number(end)
                for end, far in zip(given, (-NOWHERE, NOWHERE), strict=True)
            )
        except (TypeError, ValueError, OverflowError):
            low, high = 0.0, 0.0
        if not low < high:
            raise ValueError(
                f"bounds: expected (low, high) of {table.label(j)}, None where there is no end, got {given!r}"
            )
        low, high = max(low, -NOWHERE), min(high, NOWHERE)
        column, slack = table.values[:, j], SLACK * np.array([abs(low), abs(high)])
        ends[:, j] = _inwards(low, np.inf, table.dtype), _inwards(high, -np.inf, table.dtype)
        outside = np.flatnonzero((column < low - slack[0]) | (column > high + slack[1]))
        if len(outside):
            raise ValueError(
                f"bounds: {table.label(j)} holds {column[outside[0]]:g} in row {outside[0]}, outside "
                f"{given!r} ({len(outside)} rows affected)"
            )
        if ((column == low) | (column == high)).all():
            raise ValueError(f"bounds: {table.label(j)} holds nothing but its ends {given!r}")
    return ends


def periods_of(periodic: Mapping[Any, Any] | None, table: Table) -> PeriodicFrame | None:
    """Return the frame of the table's columns, those in ``periodic`` cut open, by name or number.

    A period is a length or a pair (start, end), between which draws are given; of a length alone they
    start at 0, where rows do, else half a period below.

    Raises:
        ValueError: If a column is not there, or its period is no positive number or pair.
    """
    if not periodic:
        return None
    periods, cuts, starts = np.zeros((3, table.values.shape[1]))
    for j, given in zip(_columns("periodic", periodic, table), periodic.values(), strict=True):
        try:
            start, end = (None, _number(given)) if np.ndim(given) == 0 else map(_number, given)
            period = end - (start or 0.0)
        except (TypeError, ValueError, OverflowError):
            start, period = None, 0.0
        if not 0 < period < NOWHERE:
            raise ValueError(
                f"periodic: expected the period of {table.label(j)}, a positive number or (start, end), "
                f"got {given!r}"
            )
        column = table.values[:, j]
        turns = np.ptp(column) / period
        if not 1e-9 < turns < 1e9:
            spread = f"{table.label(j)} spreads by {np.ptp(column):.3g}"
            raise ValueError(f"periodic: {spread}, too far from its period {given!r}")
        if turns > 2.5:
            warnings.warn(
                f"periodic: {table.label(j)} runs over {turns:.3g} periods of {period:g}; "
                "is that its period in its own unit?",
                stacklevel=4,
            )
        if start is None:
            start = 0.0 if column.min() >= 0 else -period / 2
        periods[j], starts[j] = period, start
        cuts[j] = _cut(start + np.mod(column - start, period), start, period, table.weights)
    return PeriodicFrame(periods, cuts, starts)


def _number(given: Any) -> float:
    if isinstance(given, str | bool | np.bool_):
        raise ValueError(given)
    return float(given)


def _inwards(end: float, towards: float, dtype: Any) -> float:
    """Return an end, rounded to a number of the precision, so that no draw of that precision lies beyond."""
    if abs(end) >= NOWHERE:
        return end
    rounded = np.dtype(dtype).type(end)
    within = float(rounded) >= end if towards > 0 else float(rounded) <= end
    return float(rounded if within else np.nextafter(rounded, rounded.dtype.type(towards)))


def _columns(what: str, given: Any, table: Table) -> list[int]:
    if not isinstance(given, Mapping):
        example = {"bounds": '{"age": (0, None)}', "periodic": '{"angle": 360}'}[what]
        raise ValueError(f"{what}: expected columns with theirs, as {example}, got {given!r}")
    try:
        return column_numbers(list(given), table.values.shape[1], table.columns)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _cut(x: np.ndarray, start: float, period: float, weights: np.ndarray) -> float:
    """Return where a circle is cut: in the widest gap that touches the emptiest of its 24 parts."""
    values, counts = np.unique(x, return_counts=True)
    mass = np.histogram(x, 24, (start, start + period), weights=weights)[0]
    mass = mass + np.roll(mass, 1) / 2 + np.roll(mass, -1) / 2
    gaps = np.diff(np.append(values, values[0] + period))
    middle = (values + gaps / 2 - start) % period
    parts = np.minimum((middle / period * 24).astype(int), 23)
    best = np.lexsort((-gaps, mass[parts]))[0] if len(values) > 64 else gaps.argmax()
    step = lattice_of(values, counts)[1]
    return float(values[best] + (step or gaps[best]) / 2)
