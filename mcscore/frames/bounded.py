"""Columns with ends, sent to the whole line, and periodic ones, cut open where rows are fewest.

Next to an end, at a distance of ``t`` times a scale, the image is ``Phi^-1(t)``: a density that is finite at
the end becomes a Gaussian tail. With two ends the scale is the range, and an even column becomes exactly
normal; with one it is twice the median's distance, and beyond ``t = 1/2`` the map goes on as its tangent. It
is twice continuously differentiable and in closed form both ways. No draw lies outside, and a density
integrates to one inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from mcscore._arrays import by_column, shapes
from mcscore.frames.affine import Identity
from mcscore.frames.frame import Frame

NOWHERE = 1e37  # an end that a column does not have; finite in float32
SLACK = 2.0**-22  # of an end: so far beyond it a value counts as the end, rounded
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
    slack = (SLACK * library.abs(end) for end in (low, high))
    outside = (x < low - next(slack)) | (x > high + next(slack))
    return image, library.where(outside, -library.inf, slope)


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
            if not np.ptp(column) > 1e-9 * distance.max():
                spread = f"column {j} spreads by {np.ptp(column):.3g}"
                raise ValueError(f"bounds: {spread}, too far from its end {ends[side, j]:g}")
            both = np.abs(ends[:, j]).max() < NOWHERE
            unit = high - low if both else 2 * abs(middle - ends[side, j]) or 2 * np.mean(inside)
            scales[side, j], nearest[side, j] = unit, min(inside.min() / unit / 2, 0.5)
    return BoundedFrame(ends, scales, nearest)
