"""Columns with ends, sent to the whole line, and periodic ones, cut open where rows are fewest.

Next to an end, at a distance of ``t`` times a scale, the image is ``Phi^-1(t)``: a density that is finite at
the end becomes a Gaussian tail. With two ends the scale is the range, and an even column becomes exactly
normal; with one it is twice the median's distance, and beyond ``t = 1/2`` the map goes on as its tangent. It
is twice continuously differentiable and in closed form both ways. No draw lies outside, and a density
integrates to one inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mcscore._arrays import by_column, shapes
from mcscore._validation import Table, column_numbers
from mcscore.frames.affine import Identity
from mcscore.frames.frame import Frame

NOWHERE = 1e37  # an end that a column does not have; finite in float32
NEAREST = 1e-30  # of the scale: nearer to an end nothing is told apart
SLOPE = float(np.sqrt(2 * np.pi))  # of the tangent


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class BoundedFrame(Frame):
    """The ``inner`` frame of columns sent to the whole line.

    Attributes:
        ends: The columns' ends, (2, d), -1e37 and 1e37 where they have none.
        scales: Units of the distance to either, (2, d).
        nearest: What counts as the distance at the end itself, in these units (2, d): half the least
            of the rows it was fitted to.
        inner: The frame of the images.
    """

    ends: Any
    scales: Any
    nearest: Any
    inner: Frame = Identity()
    __repr__ = shapes

    def forward(self, x: Any) -> Any:
        """Return the inner coordinates of the images of ``x``; ends count as the nearest inside."""
        return self.inner.forward(self.image(x)[0])

    def inverse(self, y: Any) -> Any:
        """Return the columns, none beyond an end."""
        return by_column(_back, self.inner.inverse(y), *self.ends, *self.scales)

    def log_det(self, x: Any) -> Any:
        """Return the inner frame's and the images'; -inf outside."""
        image, slopes = self.image(x)
        return self.inner.log_det(image) + slopes.sum(1)

    def image(self, x: Any) -> tuple[Any, Any]:
        """Return the images (b, d) and the logarithms of the slopes that lead to them, per column."""
        return by_column(_image, x, *self.ends, *self.scales, *self.nearest)

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> BoundedFrame:
        """Return the frame with the inner one recalibrated, see `Frame`."""
        return replace(self, inner=self.inner.recalibrated(y, wanted))

    def part(self, columns: Sequence[int], dimension: int) -> tuple[BoundedFrame, Any]:
        """Return the columns, with their ends, in the inner frame's part, see `Frame`."""
        at = np.asarray(columns)
        inner, matrix = self.inner.part(columns, dimension)
        tables = (self.ends[:, at], self.scales[:, at], self.nearest[:, at])
        return BoundedFrame(*tables, inner), matrix

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d) whose images the inner frame has restored."""
        return by_column(_back, self.inner.restore(self.image(x)[0]), *self.ends, *self.scales)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PeriodicFrame(Frame):
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

    def forward(self, x: Any) -> Any:
        """Return the inner coordinates, the same for every turn of the circle."""
        return self.inner.forward(self.turned(x, self.cuts))

    def inverse(self, y: Any) -> Any:
        """Return the columns within one period from their start."""
        return self.turned(self.inner.inverse(y), self.starts)

    def log_det(self, x: Any) -> Any:
        """Return the inner frame's."""
        return self.inner.log_det(self.turned(x, self.cuts))

    def places(self, x: Any) -> tuple[Any, Any]:
        """Return the inner frame's places, see `Frame`."""
        return self.inner.places(self.turned(x, self.cuts))

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> PeriodicFrame:
        """Return the frame with the inner one recalibrated, see `Frame`."""
        return replace(self, inner=self.inner.recalibrated(y, wanted))

    def part(self, columns: Sequence[int], dimension: int) -> tuple[PeriodicFrame, Any]:
        """Return the columns, with their periods, in the inner frame's part, see `Frame`."""
        at = np.asarray(columns)
        inner, matrix = self.inner.part(columns, dimension)
        return PeriodicFrame(self.periods[at], self.cuts[at], self.starts[at], inner), matrix

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d) restored by the inner frame, within one period from their start."""
        return self.turned(self.inner.restore(self.turned(x, self.cuts)), self.starts)

    def ends(self, known: np.ndarray | None) -> np.ndarray:
        """Return the ends (2, d) of the columns cut open, besides those ``known``."""
        none = np.array([[-NOWHERE], [NOWHERE]]) * np.ones(len(self.periods))
        ends = np.stack([self.cuts, self.cuts + self.periods])
        return np.where(self.periods > 0, ends, none if known is None else known)

    def turned(self, x: Any, starts: Any) -> Any:
        """Return ``x`` within one period from ``starts``."""
        return by_column(_turn, x, self.periods, starts)


def _distances(library: Any, x: Any, low: Any, high: Any, below: Any, above: Any) -> tuple:
    """Return the distances to either end in their units, and on which side the map bends: of the nearer."""
    from_low, from_high = (x - low) / below, (high - x) / above
    bends_low = (low > -NOWHERE) & (from_low <= 0.5)
    return from_low, from_high, bends_low, (high < NOWHERE) & (from_high < 0.5)


def _image(library: Any, x: Any, low, high, below, above, nearest_low, nearest_high) -> tuple:
    ndtri = _normal(library).ndtri
    near, far, bends_low, bends_high = _distances(library, x, low, high, below, above)
    t = library.where(bends_low, near, library.where(bends_high, far, 0.5))
    closest = library.where(bends_low, nearest_low, nearest_high)
    bent = ndtri(library.clip(library.where(t > 0, t, closest), NEAREST, 0.5))
    has_low, has_high = low > -NOWHERE, high < NOWHERE
    tangent = library.where(has_low, (near - 0.5) * SLOPE, (0.5 - far) * SLOPE)
    tangent = library.where(has_low | has_high, tangent, x)
    image = library.where(bends_low, bent, library.where(bends_high, -bent, tangent))
    unit = library.where(bends_high | ~has_low, above, below)
    slope = bent**2 / 2 + library.log(SLOPE / unit)
    slope = library.where(has_low | has_high, slope, library.zeros_like(x))
    return image, library.where((x < low) | (x > high), -library.inf, slope)


def _back(library: Any, w: Any, low: Any, high: Any, below: Any, above: Any) -> Any:
    ndtr = _normal(library).ndtr
    has_low, has_high = low > -NOWHERE, high < NOWHERE
    share = ndtr(-library.abs(w))
    tangent = library.where(
        has_low, low + below * (0.5 + w / SLOPE), high - above * (0.5 - w / SLOPE)
    )
    x = library.where(has_low | has_high, tangent, w)
    x = library.where(has_high & (w > 0), high - above * share, x)
    x = library.where(has_low & (w <= 0), low + below * share, x)
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
    scales, nearest = np.ones_like(ends), np.full_like(ends, 0.5)
    for j, (column, (low, high)) in enumerate(zip(x.T, ends.T, strict=True)):
        order = np.argsort(column)
        middle = column[order[np.searchsorted(np.cumsum(weights[order]), 0.5)]]
        for side, distance in enumerate((column - low, high - column)):
            if abs(ends[side, j]) >= NOWHERE:
                continue
            inside = distance[distance > 0]
            both = np.abs(ends[:, j]).max() < NOWHERE
            unit = high - low if both else 2 * abs(middle - ends[side, j]) or 2 * np.mean(inside)
            scales[side, j], nearest[side, j] = unit, min(inside.min() / unit / 2, 0.5)
    return BoundedFrame(ends, scales, nearest)


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
                far if end is None else float(end)
                for end, far in zip(given, (-NOWHERE, NOWHERE), strict=True)
            )
        except (TypeError, ValueError):
            low, high = 0.0, 0.0
        if not low < high:
            raise ValueError(
                f"bounds: expected (low, high) of {table.label(j)}, None where there is no end, got {given!r}"
            )
        ends[:, j] = max(low, -NOWHERE), min(high, NOWHERE)
        column = table.values[:, j]
        outside = np.flatnonzero((column < low) | (column > high))
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
            start, end = (None, given) if np.ndim(given) == 0 else map(float, given)
            period = float(end) - (start or 0.0)
        except (TypeError, ValueError):
            start, period = None, 0.0
        if not 0 < period < NOWHERE:
            raise ValueError(
                f"periodic: expected the period of {table.label(j)}, a positive number or (start, end), "
                f"got {given!r}"
            )
        column = table.values[:, j]
        if start is None:
            start = 0.0 if column.min() >= 0 else -period / 2
        periods[j], starts[j] = period, start
        cuts[j] = _cut(start + np.mod(column - start, period), start, period, table.weights)
    return PeriodicFrame(periods, cuts, starts)


def _columns(what: str, given: Any, table: Table) -> list[int]:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{what}: expected a mapping of columns, such as {{0: ...}}, got {given!r}"
        )
    try:
        return column_numbers(list(given), table.values.shape[1], table.columns)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _cut(x: np.ndarray, start: float, period: float, weights: np.ndarray) -> float:
    """Return where a circle is cut: in the widest gap that touches the emptiest of its 24 parts."""
    from mcscore.frames.lattice import lattice_of

    values, counts = np.unique(x, return_counts=True)
    mass = np.histogram(x, 24, (start, start + period), weights=weights)[0]
    mass = mass + np.roll(mass, 1) / 2 + np.roll(mass, -1) / 2
    gaps = np.diff(np.append(values, values[0] + period))
    middle = (values + gaps / 2 - start) % period
    parts = np.minimum((middle / period * 24).astype(int), 23)
    best = np.lexsort((-gaps, mass[parts]))[0] if len(values) > 64 else gaps.argmax()
    step = lattice_of(values, counts)[1]
    return float(values[best] + (step or gaps[best]) / 2)
