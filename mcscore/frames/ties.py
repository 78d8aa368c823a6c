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

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, side_by_side
from mcscore.frames.bounded import NOWHERE, BoundedFrame, PeriodicFrame, fit_bounds
from mcscore.frames.columns import Column, column_of, opened_end
from mcscore.frames.dependence import Scores
from mcscore.frames.frame import Frame
from mcscore.frames.opened import FAR, PLACES, OpenedFrame, table

STRATUM = 4  # rows of a stratum, at least; twice as many on average
STRATA = 40  # at most: each is a cluster at least
HEAP = 12.0  # deviations of a heap in its interval's width


class Placed(NamedTuple):
    """A table without ties.

    Attributes:
        x: Opened columns, tied rows in their places (n, d).
        weights: The rows' weights, (n,), positive, summing to one.
        gain: What a row's log density gains on the way back to the table, by column (n, d), see the module.
        strata: Which rows clusters may hold together, (n,); None where any.
        breaks: Ends of intervals that column by column a frame should know.
        columns: What was found, None for continuous columns.
        heaped: Columns whose values are in heaps.
        several: Columns over whose places a density is to be averaged: those that go with other columns,
            those beside other values, and the only one in heaps.
        groups: Which rows belong together, (n,); None if each stands for itself.
        bounded: The frame by which columns with ends came to the whole line, None if there are none.
        periodic: The frame by which circles were cut open.
        given: How many columns, the last ones, are conditions: what laws are compared by is the others'
            density.
        along: Where ``x`` is in the coordinates of a frame, the matrix (d, given) that leads to the
            conditions'.
    """

    x: np.ndarray
    weights: np.ndarray
    gain: np.ndarray
    strata: np.ndarray | None
    breaks: tuple[np.ndarray, ...]
    columns: tuple[Column | None, ...]
    heaped: tuple[bool, ...]
    several: tuple[bool, ...] = ()
    groups: np.ndarray | None = None
    bounded: BoundedFrame | None = None
    periodic: PeriodicFrame | None = None
    given: int = 0
    along: np.ndarray | None = None

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray) -> Placed:
        """Return a table as it is."""
        n, d = x.shape
        return cls(
            x, weights, np.zeros((n, d)), None, (np.zeros(0),) * d, (None,) * d, (False,) * d
        )

    def of_rows(self, rows: np.ndarray) -> Placed:
        """Return part of the rows."""
        strata = None if self.strata is None else self.strata[rows]
        groups = None if self.groups is None else self.groups[rows]
        weights = self.weights[rows] / self.weights[rows].sum()
        return self._replace(
            x=self.x[rows], weights=weights, gain=self.gain[rows], strata=strata, groups=groups
        )

    def within(self, frame: Frame) -> Placed:
        """Return the table in the coordinates of a fitted frame."""
        d = self.x.shape[1]
        along = np.asarray(frame.part(range(d - self.given, d), d)[1]) if self.given else None
        return self._replace(x=frame.forward(self.x), along=along)

    def between(self, ends: np.ndarray) -> Placed:
        """Return the table whose columns, with ``ends`` (2, d), were sent to the whole line."""
        opened, columns = ends.copy(), list(self.columns)
        for j, column in enumerate(columns):
            if column is not None:
                opened[:, j] = [opened_end(column, ends[0, j], ends[1, j], side) for side in (0, 1)]
                origin, step, least, most = column.lattice
                within = max(least, ends[0, j]), min(most, ends[1, j])
                columns[j] = column._replace(lattice=(origin, step, *within))
        bounded = fit_bounds(self.x, self.weights, opened)
        x, slopes = bounded.enter(self.x)
        at = [np.broadcast_to(b[:, None], (len(b), len(columns))) for b in self.breaks]
        breaks = tuple(bounded.enter(b)[0][:, j] for j, b in enumerate(at))
        return self._replace(
            x=x,
            gain=self.gain + slopes,
            breaks=breaks,
            columns=tuple(columns),
            bounded=bounded,
        )

    @property
    def ended(self) -> list[int]:
        """The columns whose draws stop at an end."""
        ended = np.array([c is not None and c.lattice[2] > -FAR for c in self.columns])
        if self.bounded is not None:
            ended |= (np.abs(self.bounded.ends) < NOWHERE).any(0)
        return np.flatnonzero(ended).tolist()

    def frame(self, inner: Any) -> Any:
        """Return the table's frame, given the ``inner`` one of its columns as they are here."""
        if self.bounded is not None:
            inner = replace(self.bounded, inner=inner)
        if any(self.columns):
            inner = self._opened(inner)
        return inner if self.periodic is None else replace(self.periodic, inner=inner)

    def _opened(self, inner: Any) -> OpenedFrame:
        none = np.zeros(0)
        parts, lattices = [], []
        several = self.several or (False,) * len(self.columns)
        for column, heaped, spread in zip(self.columns, self.heaped, several, strict=True):
            if column is None:
                parts.append([none] * 6)
                lattices.append((0.0, 0.0, -FAR, FAR))
                continue
            at = column.atoms
            width = np.diff(column.rooms, axis=0)[0]
            width = width / HEAP * np.sqrt(2 * np.pi) if heaped and not spread else width
            gain = np.log(np.where(width > 0, width, 1) / column.unit)
            parts.append([column.values[at], *column.cells[:, at], *column.rooms[:, at], gain[at]])
            lattices.append(column.lattice)
        if not max(len(part[0]) for part in parts):
            parts[0] = [np.array([FAR])] * 5 + [np.zeros(1)]
        values, start, end, low, high, heights = table(parts, len(parts))
        cells, rooms = np.stack([start, end]), np.stack([low, high])
        lattice, shares = np.array(lattices).T, None
        if any(self.several):
            turns = np.random.default_rng(0).random((PLACES, len(parts))).argsort(0)
            shares = np.where(self.several, (turns + 0.5) / PLACES, 0.5)
        return OpenedFrame(values, cells, rooms, heights, lattice, inner, shares)


def placed(
    key: Array,
    x: np.ndarray,
    weights: np.ndarray,
    *,
    spread: bool = True,
    ends: np.ndarray | None = None,
    circles: PeriodicFrame | None = None,
    given: int = 0,
) -> list[Placed]:
    """Return ``x`` (n, d) with ties side by side and, where columns have few values, a second time apart.

    Ties of conditions are placed by chance: an order by the other columns would tell what is to be predicted.

    Args:
        key: Random key.
        x: Rows (n, d).
        weights: Their weights (n,), positive, summing to one.
        spread: Whether ties are spread; the rows stay as they are if not.
        ends: Ends of the columns (2, d), if they have any; ``told`` has the user's.
        circles: Frame of columns cut open, if there are any.
        given: How many columns, the last ones, are conditions.
    """
    if circles is not None:
        x = circles.enter(x)[0]
    if ends is not None:
        x = np.clip(x, *ends)  # what was rounded beyond
    plain = Placed.of(x, weights)._replace(given=given)
    ways = _spread(key, plain) if spread else [plain]
    if ends is not None:
        ways = [way.between(ends) for way in ways]
    return [way._replace(periodic=circles) for way in ways]


def _spread(key: Array, plain: Placed) -> list[Placed]:
    x, weights = plain.x, plain.weights
    columns = tuple(side_by_side(lambda column: column_of(column, weights), x.T))
    plain = plain._replace(columns=columns)
    if not any(column is not None and column.repeated.any() for column in columns):
        return [plain]
    generator = host_generator(key)
    scores = Scores(generator, x, weights)
    beside = _place(generator, plain, scores)
    strata, heaped = _strata(columns)
    if strata is None:
        return [beside]
    return [beside, _place(generator, plain._replace(strata=strata, heaped=heaped), scores)]


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
    out, gain, breaks = plain.x.copy(), np.zeros(plain.x.shape), []
    several = [False] * out.shape[1]
    for j, column in enumerate(plain.columns):
        if column is None:
            breaks.append(np.zeros(0))
            continue
        (low, high), tied = column.rooms[:, column.level], column.repeated
        out[:, j] += low - column.cells[0, column.level]
        if plain.heaped[j]:
            heaped = tied & column.atoms[column.level]
            side_by_side = tied & ~heaped
            # Its places are a quadrature over the heap; those of two heaps, no product of such,
            # would not be.
            several[j] = sum(plain.heaped) == 1
        else:
            heaped, side_by_side = np.zeros(len(tied), bool), tied
        width, middle = high - low, (low + high) / 2
        gain[tied, j] -= np.log(column.unit[column.level][tied])
        if heaped.any():
            deviation = width[heaped] / HEAP
            out[heaped, j] = middle[heaped] + deviation * _normal(generator, column.level[heaped])
            gain[heaped, j] += np.log(deviation) + (1 + np.log(2 * np.pi)) / 2
        if side_by_side.any():
            drive, share = scores.drive(j) if j < out.shape[1] - plain.given else (0.0, 0.0)
            several[j] = share > 0 or column.has_bare_atoms
            noise = generator.standard_normal(len(tied))
            drive = np.sqrt(share) * drive + np.sqrt(1 - share) * noise
            u = _uniform(generator, column.level, drive)
            out[side_by_side, j] = (low + u * width)[side_by_side]
            gain[side_by_side, j] += np.log(width[side_by_side]) + np.log1p(-share) / 2
        ends = np.unique(column.rooms[:, column.atoms])
        breaks.append(ends[:65] if len(ends) <= 65 else np.zeros(0))
    return plain._replace(x=out, gain=gain, breaks=tuple(breaks), several=tuple(several))


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
