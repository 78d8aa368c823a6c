"""Columns with ends, sent to the whole line, and periodic ones, cut open where rows are fewest.

Next to an end, at a distance of ``t`` times a scale, the image is ``Phi^-1(t)``: a density that is finite at
the end becomes a Gaussian tail. With two ends the scale is the range, and an even column becomes exactly
normal; with one it is twice the median's distance, and beyond ``t = 1/2`` the map goes on as its tangent. It
is twice continuously differentiable and in closed form both ways. No draw lies outside, and a density
integrates to one inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mcscore._arrays import by_column, pytree, shapes
from mcscore._numbers import column_numbers
from mcscore._validation import Table
from mcscore.frames.affine import Identity
from mcscore.frames.frame import Frame, OuterFrame
from mcscore.frames.lattice import lattice_of

NOWHERE = 1e37  # an end that a column does not have; finite in float32
AWAY = 1e36  # from here on there is none: float32 rounds the other down
SLACK = 2.0**-22  # of an end: so far beyond it a value counts as the end, rounded
NEAREST = 1e-30  # of the scale: nearer to an end nothing is told apart
SLOPE = float(np.sqrt(2 * np.pi))  # of the tangent


@pytree()
@dataclass(frozen=True, eq=False)
class BoundedFrame(OuterFrame):
    """The ``inner`` frame of columns sent to the whole line. A density outside the ends is zero.

    Attributes:
        ends: The columns' ends, (2, d), -1e37 and 1e37 where they have none.
        units: What distances to the ends are measured by, (d,).
        nearest: What counts as the distance at the end itself, in these units (2, d): half the least
            of the rows it was fitted to.
        inner: The frame of the images.
    """

    ends: Any
    units: Any
    nearest: Any
    inner: Frame = Identity()
    __repr__ = shapes

    def enter(self, x: Any) -> tuple[Any, Any]:
        """Return the images (b, d) and the logarithms of the slopes that lead to them; -inf outside."""
        return by_column(_image, x, *self.ends, self.units, *self.nearest)

    def leave(self, s: Any) -> Any:
        """Return the columns of images, none beyond an end."""
        return by_column(_back, s, *self.ends, self.units)

    def part(self, columns: Sequence[int], dimension: int) -> tuple[BoundedFrame, Any]:
        """Return the columns, with their ends, in the inner frame's part, see `Frame`."""
        at = np.asarray(columns)
        inner, matrix = self.inner.part(columns, dimension)
        return BoundedFrame(self.ends[:, at], self.units[at], self.nearest[:, at], inner), matrix


@pytree()
@dataclass(frozen=True, eq=False)
class PeriodicFrame(OuterFrame):
    """The ``inner`` frame of columns of which some have a period.

    Attributes:
        periods: (d,), 0 where a column has none.
        cuts: Where the circle is cut open: the inner columns run from here on, (d,).
        starts: Where the user's do, (d,).
        inner: The frame of the columns cut open.
    """

    periods: Any
    cuts: Any
    starts: Any
    inner: Frame = Identity()
    __repr__ = shapes

    def enter(self, x: Any) -> tuple[Any, Any]:
        """Return the columns cut open, the same for every turn of the circle."""
        return by_column(_turn, x, self.periods, self.cuts), 0 * x

    def leave(self, s: Any) -> Any:
        """Return the columns within one period from their start."""
        return by_column(_turn, s, self.periods, self.starts)

    def part(self, columns: Sequence[int], dimension: int) -> tuple[PeriodicFrame, Any]:
        """Return the columns, with their periods, in the inner frame's part, see `Frame`."""
        at = np.asarray(columns)
        inner, matrix = self.inner.part(columns, dimension)
        return PeriodicFrame(self.periods[at], self.cuts[at], self.starts[at], inner), matrix


def _middle(library: Any, low: Any, high: Any, unit: Any) -> Any:
    """Return where the tangent passes through zero: half a unit from an end, or at zero without one."""
    from_high = library.where(high < AWAY, high - unit / 2, 0)
    return library.where(low > -AWAY, low + unit / 2, from_high)


def _image(library: Any, x: Any, low, high, unit, nearest_low, nearest_high) -> tuple[Any, Any]:
    above, below = (x - low) / unit, (high - x) / unit
    at_low, at_high = above <= 0.5, below < 0.5
    above = library.where(above > 0, above, nearest_low)
    below = library.where(below > 0, below, nearest_high)
    t = library.where(at_low, above, library.where(at_high, below, 0.5))
    bent = _normal(library).ndtri(library.clip(t, NEAREST, 0.5))
    tangent = (x - _middle(library, low, high, unit)) * (SLOPE / unit)
    image = library.where(at_low, bent, library.where(at_high, -bent, tangent))
    slope = bent**2 / 2 + library.log(SLOPE / unit)
    outside = (x < low - SLACK * library.abs(low)) | (x > high + SLACK * library.abs(high))
    return image, library.where(outside, -library.inf, slope)


def _back(library: Any, w: Any, low: Any, high: Any, unit: Any) -> Any:
    share = unit * _normal(library).ndtr(-library.abs(w))
    x = _middle(library, low, high, unit) + w * (unit / SLOPE)
    x = library.where((high < AWAY) & (w > 0), high - share, x)
    x = library.where((low > -AWAY) & (w <= 0), low + share, x)
    return library.clip(x, low, high)


def _turn(library: Any, x: Any, period: Any, start: Any) -> Any:
    unit = library.where(period > 0, period, 1)
    turned = x - unit * library.floor((x - start) / unit)  # within the period already: as it is
    return library.where(period > 0, library.clip(turned, start, start + unit), x)


def _normal(library: Any) -> Any:
    """Return the module with the normal distribution function of an array library."""
    if library is np:
        from scipy import special

        return special
    return jax.scipy.special


def fit_bounds(x: np.ndarray, weights: np.ndarray, ends: np.ndarray) -> BoundedFrame:
    """Return the frame of columns ``x`` (n, d), weights (n,), with ``ends`` (2, d)."""
    units, nearest = np.full(x.shape[1], SLOPE), np.full_like(ends, 0.5)
    has_low, has_high = np.abs(ends) < AWAY
    for j in np.flatnonzero(has_low | has_high):
        column, (low, high) = x[:, j], ends[:, j]
        if has_low[j] and has_high[j]:
            units[j] = high - low
        else:
            order = np.argsort(column)
            middle = column[order[np.searchsorted(np.cumsum(weights[order]), 0.5)]]
            distance = column - low if has_low[j] else high - column
            units[j] = 2 * abs(middle - (low if has_low[j] else high)) or 2 * distance.mean()
        for side, distance in enumerate((column - low, high - column)):
            nearest[side, j] = min(distance[distance > 0].min() / units[j] / 2, 0.5)
    return BoundedFrame(ends, units, nearest)


def told(
    bounds: Mapping[Any, Any] | None, periodic: Mapping[Any, Any] | None, table: Table
) -> tuple[np.ndarray | None, PeriodicFrame | None]:
    """Return the ends (2, d) of the table's columns and the frame that cuts circles open, None without any.

    Raises:
        ValueError: As ``bounds_of`` and ``periods_of`` do, and if a column has both.
    """
    ends, circles = bounds_of(bounds, table), periods_of(periodic, table)
    if circles is None:
        return ends, None
    ends = _no_ends(table) if ends is None else ends
    circular = circles.periods > 0
    for j in np.flatnonzero(circular & (np.abs(ends) < AWAY).any(0)):
        raise ValueError(f"periodic: {table.label(j)} has bounds too")
    return np.where(
        circular, np.stack([circles.cuts, circles.cuts + circles.periods]), ends
    ), circles


def bounds_of(bounds: Mapping[Any, Any] | None, table: Table) -> np.ndarray | None:
    """Return the ends (2, d) that ``bounds`` gives to the table's columns, by name or number.

    Raises:
        ValueError: If a column is not there, its ends are no (low, high), or a row lies outside.

    >>> bounds_of({1: (0, None)}, Table.of([[1.0, 2.0]])).tolist()
    [[-1e+37, 0.0], [1e+37, 1e+37]]
    """
    if not bounds:
        return None
    ends = _no_ends(table)
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
                f"bounds: {table.label(j)} holds {column[outside[0]]:g} in row {table.place(outside[0])}, "
                f"outside {given!r} ({len(outside)} rows affected)"
            )
        if ((column == low) | (column == high)).all():
            raise ValueError(f"bounds: {table.label(j)} holds nothing but its ends {given!r}")
        if np.ptp(column) < 1e-9 * max(abs(end) for end in (0.0, low, high) if abs(end) < AWAY):
            spread = f"{table.label(j)} spreads by {np.ptp(column):.3g}"
            raise ValueError(f"bounds: {spread}, too far from its ends {given!r}")
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


def _no_ends(table: Table) -> np.ndarray:
    return np.array([[-NOWHERE], [NOWHERE]]) * np.ones(table.values.shape[1])


def _number(given: Any) -> float:
    if isinstance(given, str | bool | np.bool_):
        raise ValueError(given)
    return float(given)


def _inwards(end: float, towards: float, dtype: Any) -> float:
    """Return an end, rounded to a number of the precision, so that no draw of that precision lies beyond."""
    if abs(end) >= AWAY:
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
