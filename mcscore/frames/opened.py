"""Columns opened: a value on which rows are tied has an interval of its own.

The distributional transform (Rueschendorf 2009): a row on an atom gets a place in the atom's interval, and
the way back sends the whole interval to the atom, so that spreading and putting back are inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mcscore._arrays import by_column, library_of, like, pytree, shapes
from mcscore.frames.frame import Frame, OuterFrame

PLACES = 16  # of a value's interval, at which a driven column's density is taken
NARROW = 0.01  # of a deviation: within, a law is even, and differences of scores are not exact
FAR = 1e37  # pads tables: beyond any value, finite in float32


@pytree()
@dataclass(frozen=True, eq=False)
class OpenedFrame(OuterFrame):
    """The ``inner`` frame of opened columns ``s``.

    A column grows by the widths of its atoms' intervals: ``s`` is piecewise linear in ``x``, and a value
    is in the middle of its interval. A density is per unit of a continuous or lattice column; on an atom
    of a column with other values too it is a probability. It is taken from the middle of the interval.

    Attributes:
        values: Values with an interval, increasing (d, m), padded with 1e37.
        cells: What counts as the value in the column itself: from and to, (2, d, m).
        rooms: Its interval, (2, d, m).
        heights: What a log density at the middle gains, (d, m).
        lattice: Origin, step (0: none), least and greatest value of every column, (4, d).
        inner: The frame of the opened columns.
        shares: Of the interval, where the ``PLACES`` places are over which a law's density is the mean,
            (PLACES, d), or None. They are at equal steps of the inner frame's scores, in which a law is
            smooth, and a Latin hypercube over columns (McKay, Beckman and Conover 1979); 1/2 in columns that
            the middle stands for. The middle alone (the network's) can be far from the mean.
    """

    values: Any
    cells: Any
    rooms: Any
    heights: Any
    lattice: Any
    inner: Frame
    shares: Any = None
    __repr__ = shapes

    def enter(self, x: Any) -> tuple[Any, Any]:
        """Return the opened columns ``s`` (b, d) and what a log density gains by it, per column."""
        return by_column(_open, x, self.values, *self.cells, *self.rooms, self.heights)

    def leave(self, s: Any) -> Any:
        """Return the columns, closed again: all of an atom's interval is the atom."""
        return by_column(_close, s, *self.cells, *self.rooms)

    def part(self, columns: Sequence[int], dimension: int) -> tuple[OpenedFrame, Any]:
        """Return the columns, opened, in the inner frame's part, see `Frame`."""
        at = np.asarray(columns)
        inner, matrix = self.inner.part(columns, dimension)
        tables = (self.values[at], self.cells[:, at], self.rooms[:, at], self.heights[at])
        shares = None if self.shares is None else self.shares[:, at]
        if isinstance(shares, np.ndarray) and not np.ptp(shares):
            shares = None
        return OpenedFrame(*tables, self.lattice[:, at], inner, shares), matrix

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d) restored by the inner frame, on values, steps and within the ends."""
        x = super().restore(x)
        return by_column(_put_back, x, self.values, *self.cells, *self.lattice)

    def places(self, x: Any) -> tuple[Any, Any]:
        """Return places in the values' intervals, several where columns have ``shares``, see `Frame`."""
        s, gains = self.enter(x)
        places, gains = s[None], gains[None]
        if self.shares is not None:
            library, shares = library_of(s), like(self.shares, s)[:, None]
            low, high = by_column(_room, x, self.values, *self.cells, *self.rooms, self.lattice[1])
            start, end = (self.inner.column_scores(edge)[0] for edge in (low, high))
            width, spread = (high - low)[None], (end - start)[None]
            flat = (start[None] + shares * spread).reshape(-1, s.shape[1])
            even = self.inner.of_column_scores(flat)
            slopes = self.inner.column_scores(even)[1]
            even, slopes = (a.reshape(len(shares), *s.shape) for a in (even, slopes))
            several = (shares != shares[:1]).any(0)[None]
            wide = several & (spread > NARROW)
            ratio = library.where(wide, spread / library.where(width > 0, width, 1), 1)
            gains = gains + library.where(wide, library.log(ratio) - slopes, 0)
            beside = library.where(several, low[None] + shares * width, places)
            places = library.where(wide, even, beside)
        flat = places.reshape(-1, s.shape[1])
        gain = self.inner.log_det(flat).reshape(places.shape[:2]) + gains.sum(2)
        return self.inner.forward(flat).reshape(places.shape), gain


def _at(library: Any, x: Any, starts: Any, ends: Any) -> tuple[Any, Any, Any]:
    """Return the last interval that starts at or before ``x``, if there is one, and if it holds ``x``."""
    k = library.searchsorted(starts, x, side="right") - 1
    after, k = k >= 0, library.maximum(k, 0)
    return k, after, after & (x <= ends[k])


def _along(library: Any, x: Any, k: Any, after: Any, inside: Any, cells: Any, rooms: Any) -> Any:
    """Return the image of ``x`` under the map that sends intervals to intervals, of slope 1 elsewhere."""
    (start, end), (low, high) = ((part[k] for part in parts) for parts in (cells, rooms))
    width = library.where(end > start, end - start, 1)
    within = low + (library.where(inside, x, start) - start) * ((high - low) / width)
    return library.where(inside, within, library.where(after, x + (high - end), x))


def _open(
    library: Any, x: Any, values: Any, start: Any, end: Any, low: Any, high: Any, heights: Any
) -> tuple[Any, Any]:
    k, after, inside = _at(library, x, start, end)
    exact = inside & (library.abs(x - values[k]) <= 2.0**-22 * library.abs(values[k]))
    s = _along(library, x, k, after, inside, (start, end), (low, high))
    s = library.where(exact, (low[k] + high[k]) / 2, s)
    width = end[k] - start[k]
    slope = library.where(width > 0, (high[k] - low[k]) / library.where(width > 0, width, 1), 1)
    gain = library.where(exact, heights[k], library.where(inside, library.log(slope), 0))
    return s, gain


def _room(
    library: Any, x: Any, values: Any, start: Any, end: Any, low: Any, high: Any, step: Any
) -> tuple[Any, Any]:
    """Return the ends of a value's interval: its own, or a step of the lattice around it."""
    k, after, inside = _at(library, x, start, end)
    s = _along(library, x, k, after, inside, (start, end), (low, high))
    return library.where(inside, low[k], s - step / 2), library.where(inside, high[k], s + step / 2)


def _close(library: Any, s: Any, start: Any, end: Any, low: Any, high: Any) -> Any:
    k, after, inside = _at(library, s, low, high)
    return _along(library, s, k, after, inside, (low, high), (start, end))


def _put_back(
    library: Any,
    x: Any,
    values: Any,
    start: Any,
    end: Any,
    origin: Any,
    step: Any,
    least: Any,
    most: Any,
) -> Any:
    k, _, inside = _at(library, x, start, end)
    unit = library.where(step > 0, step, 1)
    stepped = origin + unit * library.round((x - origin) / unit)
    x = library.where(inside, values[k], library.where(step > 0, stepped, x))
    return library.clip(x, least, most)


def table(columns: Sequence[Sequence[np.ndarray]], d: int) -> list[np.ndarray]:
    """Return the parts (k,) of every column as tables (d, m), padded."""
    longest = max((len(parts[0]) for parts in columns), default=0)
    out = []
    for part in zip(*columns, strict=True):
        rows = [np.append(a, np.full(longest - len(a), FAR)) for a in part]
        out.append(np.stack(rows).reshape(d, longest))
    return out
