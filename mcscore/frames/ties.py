"""Kinds of columns, continuous, on a lattice, of few levels or with atoms, and ties spread before fitting.

A density on a column with equal values has no bound: likelihood could be bought by sharpening on them. So
every tied row gets a place ``s`` in an interval of its value's own, of a known density ``q(s | x)``, and

    log p(x) >= E_q[log p(s) - log q(s | x)]

is what laws are compared by (variational dequantization: Ho, Chen, Srinivas, Duan and Abbeel 2019). There are
two ways to place them. Side by side, intervals are filled, in an order that keeps the dependence on the other
columns: the law may run smoothly over values. Apart, rows are heaped in the middle of each interval and no
cluster holds two values (``strata``): what else depends on the value may change from one to the next at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator
from mcscore.frames.dependence import Scores
from mcscore.frames.lattice import lattice_of
from mcscore.frames.opened import FAR, OpenedFrame, table

FINE = 1e-4  # of the central range or of the rows: finer and rarer ties tell nothing
ATOM = 0.01  # of the rows: that many on one value are no accident
HEAVY = 5.0  # times what its neighborhood holds: such a value needs more room than it has
LEVELS = 12  # values of a column that are kept apart, at most
STRATUM = 4  # rows of a stratum, at least; twice as many on average
STRATA = 40  # at most: each is a cluster at least
HEAP = 12.0  # deviations of a heap in its interval's width


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


class Placed(NamedTuple):
    """A table without ties.

    Attributes:
        x: Opened columns, tied rows in their places (n, d).
        weights: The rows' weights, (n,), positive, summing to one.
        gain: What a row's log density gains on the way back to the table, (n,), see the module.
        strata: Which rows clusters may hold together, (n,); None where any.
        breaks: Ends of intervals that column by column a frame should know.
        columns: What was found, None for continuous columns.
        heaped: Columns whose values are in heaps.
        driven: Columns whose places go with other columns.
        groups: Which rows belong together, (n,); None if each stands for itself.
    """

    x: np.ndarray
    weights: np.ndarray
    gain: np.ndarray
    strata: np.ndarray | None
    breaks: tuple[np.ndarray, ...]
    columns: tuple[Column | None, ...]
    heaped: tuple[bool, ...]
    driven: tuple[bool, ...] = ()
    groups: np.ndarray | None = None

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray) -> Placed:
        """Return a table as it is."""
        n, d = x.shape
        return cls(x, weights, np.zeros(n), None, (np.zeros(0),) * d, (None,) * d, (False,) * d)

    def of_rows(self, rows: np.ndarray) -> Placed:
        """Return part of the rows."""
        strata = None if self.strata is None else self.strata[rows]
        groups = None if self.groups is None else self.groups[rows]
        weights = self.weights[rows] / self.weights[rows].sum()
        return self._replace(
            x=self.x[rows], weights=weights, gain=self.gain[rows], strata=strata, groups=groups
        )

    def frame(self, inner: Any) -> Any:
        """Return the table's frame, given the ``inner`` one of the opened columns."""
        if not any(self.columns):
            return inner
        none = np.zeros(0)
        parts, lattices = [], []
        for column, heaped in zip(self.columns, self.heaped, strict=True):
            if column is None:
                parts.append([none] * 6)
                lattices.append((0.0, 0.0, -FAR, FAR))
                continue
            at = column.atoms
            width = np.diff(column.rooms, axis=0)[0]
            width = width / HEAP * np.sqrt(2 * np.pi) if heaped else width
            gain = np.log(np.where(width > 0, width, 1) / column.unit)
            parts.append([column.values[at], *column.cells[:, at], *column.rooms[:, at], gain[at]])
            lattices.append(column.lattice)
        if not max(len(part[0]) for part in parts):
            parts[0] = [np.array([FAR])] * 5 + [np.zeros(1)]
        values, start, end, low, high, heights = table(parts, len(parts))
        cells, rooms = np.stack([start, end]), np.stack([low, high])
        driven = np.array(self.driven, float) if any(self.driven) else None
        return OpenedFrame(values, cells, rooms, heights, np.array(lattices).T, inner, driven)


def placed(key: Array, x: np.ndarray, weights: np.ndarray) -> list[Placed]:
    """Return ``x`` (n, d) with ties placed side by side and, where columns have few values, also apart."""
    columns = tuple(_column(column, weights) for column in x.T)
    plain = Placed.of(x, weights)._replace(columns=columns)
    if not any(column is not None and column.repeated.any() for column in columns):
        return [plain]
    generator = host_generator(key)
    scores = Scores(x, weights)
    beside = _place(generator, plain, scores)
    strata, heaped = _strata(columns)
    if strata is None:
        return [beside]
    return [beside, _place(generator, plain._replace(strata=strata, heaped=heaped), scores)]


def _column(x: np.ndarray, weights: np.ndarray) -> Column | None:
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
    few = full and len(values) <= LEVELS
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


def _strata(
    columns: tuple[Column | None, ...],
) -> tuple[np.ndarray | None, tuple[bool, ...]]:
    """Return strata (n,) of rows that agree in columns of few values, and which columns those are.

    Columns of most values are given up until there are ``STRATA`` at most, of eight rows on average; those of
    fewer than four join the one that agrees in most columns.
    """
    labels: dict[int, np.ndarray] = {}
    for j, column in enumerate(columns):
        if column is not None and column.apart:
            kept = np.where(column.atoms, np.cumsum(column.atoms), 0)
            labels[j] = kept[column.level]
    while labels:
        rows = np.stack(list(labels.values()), 1)
        n = len(rows)
        unique, strata, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
        large = counts >= STRATUM
        if large.sum() <= min(STRATA, n / (2 * STRATUM)) and counts[large].sum() >= 0.8 * n:
            break
        del labels[max(labels, key=lambda j: labels[j].max())]
    if not labels or large.sum() < 2:
        return None, (False,) * len(columns)
    agree = (unique[:, None] == unique[None, large]).sum(2) + counts[large] / (2 * n)
    to = np.where(large, np.cumsum(large) - 1, agree.argmax(1))
    return to[strata.reshape(-1)], tuple(j in labels for j in range(len(columns)))


def _place(generator: np.random.Generator, plain: Placed, scores: Scores) -> Placed:
    """Return the table with every tied row in its place."""
    out, gain, breaks = plain.x.copy(), np.zeros(len(plain.x)), []
    driven = [False] * out.shape[1]
    for j, column in enumerate(plain.columns):
        if column is None:
            breaks.append(np.zeros(0))
            continue
        (low, high), tied = column.rooms[:, column.level], column.repeated
        out[:, j] += low - column.cells[0, column.level]
        if plain.heaped[j]:
            heaped = tied & column.atoms[column.level]
            side_by_side = tied & ~heaped
        else:
            heaped, side_by_side = np.zeros(len(tied), bool), tied
        width, middle = high - low, (low + high) / 2
        gain[tied] -= np.log(column.unit[column.level][tied])
        if heaped.any():
            deviation = width[heaped] / HEAP
            out[heaped, j] = middle[heaped] + deviation * _normal(generator, column.level[heaped])
            gain[heaped] += np.log(deviation) + (1 + np.log(2 * np.pi)) / 2
        if side_by_side.any():
            drive, share = scores.drive(j)
            driven[j] = share > 0
            noise = generator.standard_normal(len(tied))
            drive = np.sqrt(share) * drive + np.sqrt(1 - share) * noise
            u = _uniform(generator, column.level, drive)
            out[side_by_side, j] = (low + u * width)[side_by_side]
            gain[side_by_side] += np.log(width[side_by_side]) + np.log1p(-share) / 2
        ends = np.unique(column.rooms[:, column.atoms])
        breaks.append(ends[:65] if len(ends) <= 65 else np.zeros(0))
    return plain._replace(x=out, gain=gain, breaks=tuple(breaks), driven=tuple(driven))


def _uniform(generator: np.random.Generator, level: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """Return a place in (0, 1) for every row, even within its level and in the order of ``drive``."""
    order = np.lexsort((drive, level))
    counts = np.bincount(level)
    start = np.cumsum(counts) - counts
    rank = np.empty(len(level))
    rank[order] = np.arange(len(level)) - start[level[order]]
    return (rank + generator.random(len(level))) / counts[level]


def _normal(generator: np.random.Generator, level: np.ndarray) -> np.ndarray:
    """Return normal scores, spread evenly over the rows of every level in random order."""
    from scipy.special import ndtri

    return ndtri(_uniform(generator, level, generator.random(len(level))))
