r"""Monotone rational-quadratic splines with power-law tails, in closed form both ways.

After Gregory and Delbourgo (1982); ``frames.GaussianizedFrame`` gives the formula of the tails. ``spline``
and its inverse take the array library (NumPy or ``jax.numpy``) first and one column's tables (k,) last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TAIL = 3.0  # a: the exponent of the power-law tails is about a / u^2 at score u
NONE = np.zeros(0)
VOID = 0.25  # of the density on either side


def _interval(library: Any, value: Any, grid: Any, knots: Any, scores: Any, slopes: Any) -> Any:
    """Return of the interval of ``grid`` that holds ``value``: start, size, and slopes at its ends.

    The start is a point (x0, u0), the size (width, rise), and the slopes are in units of the secant's,
    which comes last: a column's own units may be so large or small that their squares leave float32.
    """
    upper = library.clip(library.searchsorted(grid, value, side="right"), 1, len(grid) - 1)
    x0, u0, d0 = (table[upper - 1] for table in (knots, scores, slopes))
    x1, u1, d1 = (table[upper] for table in (knots, scores, slopes))
    width, rise = library.where(x1 > x0, x1 - x0, 1), u1 - u0
    secant = library.where(x1 > x0, rise / width, d0)
    return x0, u0, width, rise, d0 / secant, d1 / secant, secant


def spline(library: Any, x: Any, knots: Any, scores: Any, slopes: Any) -> tuple[Any, Any]:
    """Return ``f(x)`` and ``log f'(x)``."""
    inside = library.clip(x, knots[0], knots[-1])
    x0, u0, width, rise, d0, d1, secant = _interval(library, inside, knots, knots, scores, slopes)
    xi = (inside - x0) / width
    below = 1 + (d0 + d1 - 2) * xi * (1 - xi)
    u = u0 + rise * (xi**2 + d0 * xi * (1 - xi)) / below
    slope = secant * (d1 * xi**2 + 2 * xi * (1 - xi) + d0 * (1 - xi) ** 2) / below**2
    for sign, end in ((1, -1), (-1, 0)):
        u1, d1 = sign * scores[end], slopes[end]
        c = TAIL / (u1 * d1)
        out = library.maximum(sign * (x - knots[end]), 0)
        far = library.sqrt(u1**2 + 2 * TAIL * library.log1p(out / c))
        beyond = out > 0
        u = library.where(beyond, sign * far, u)
        slope = library.where(beyond, TAIL / (far * (c + out)), slope)
    return u, library.log(slope)


def spline_inverse(library: Any, u: Any, knots: Any, scores: Any, slopes: Any) -> Any:
    """Return ``x`` with ``f(x) = u``: the stable root of a quadratic, or the tail's exponential."""
    inside = library.clip(u, scores[0], scores[-1])
    x0, u0, width, rise, d0, d1, _ = _interval(library, inside, scores, knots, scores, slopes)
    share = (inside - u0) / library.where(rise > 0, rise, 1)
    bend = share * (d0 + d1 - 2)
    a, b, c = 1 - d0 + bend, d0 - bend, -share
    discriminant = library.sqrt(library.maximum(b**2 - 4 * a * c, 0))
    below = b + discriminant
    x = x0 + width * library.clip(-2 * c / library.where(below > 0, below, 1), 0, 1)
    for sign, end in ((1, -1), (-1, 0)):
        u1, d1 = sign * scores[end], slopes[end]
        c = TAIL / (u1 * d1)
        far = library.maximum(sign * u, u1)
        out = c * library.expm1((far**2 - u1**2) / (2 * TAIL))
        x = library.where(far > u1, knots[end] + sign * out, x)
    return x


def with_tails(scores: np.ndarray) -> np.ndarray:
    """Return increasing ``scores`` with ends of at least a half on either side, as the tails need."""
    ends = min(scores[0], -0.5), max(scores[-1], 0.5)
    return np.concatenate([ends[:1], scores[1:-1], ends[1:]])


def pad(a: np.ndarray, length: int) -> np.ndarray:
    """Return ``a`` with its last entry repeated up to ``length``."""
    return np.concatenate([a, np.repeat(a[-1:], length - len(a))])


def slopes_at(knots: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return slopes of the parabola through three knots, exact for smooth maps, within monotone range."""
    s, w = np.diff(scores) / np.diff(knots), np.diff(knots)
    if len(s) == 1:
        return np.repeat(s, 2)
    inner = (w[1:] * s[:-1] + w[:-1] * s[1:]) / (w[1:] + w[:-1])
    inner = np.clip(inner, np.minimum(s[:-1], s[1:]), np.maximum(s[:-1], s[1:]))
    return np.concatenate([[s[0]], inner, [s[-1]]])


def distribution(x: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different values of ``x`` and the mid-distribution function there: ties share a level."""
    values, inverse = np.unique(x, return_inverse=True)
    mass = np.bincount(inverse, share)
    return values, np.cumsum(mass) - mass / 2


def fit_spline(
    x: np.ndarray, share: np.ndarray, count: int, size: float, breaks: np.ndarray = NONE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return knots at quantiles and ``breaks``, their normal scores, voids opened, and monotone slopes."""
    from scipy.special import ndtr, ndtri

    values, levels = distribution(x, share)
    edge = ndtri(1 - min(0.1, 4 / size))  # about four rows lie beyond the last knot
    scores = np.linspace(-edge, edge, count)
    knots = np.interp(ndtr(scores), levels, values)
    # A knot needs room: slopes are densities, and no density may be read off a few coinciding rows.
    low, high = np.interp([0.1, 0.9], levels, values)
    room = 2e-3 * (high - low) if high > low else 1e-3 * (values[-1] - values[0])
    keep = [0]
    for k in range(1, count):
        if knots[k] - knots[keep[-1]] >= room:
            keep.append(k)
    knots, scores = knots[keep], scores[keep]
    breaks = breaks[(breaks > knots[0]) & (breaks < knots[-1])]
    if len(breaks):  # in place of the knots beside them
        far = np.abs(knots[:, None] - breaks[None]).min(1) >= room
        far[[0, -1]] = True
        at = ndtri(np.interp(breaks, values, levels))
        order = np.argsort(np.concatenate([knots[far], breaks]), kind="stable")
        knots = np.concatenate([knots[far], breaks])[order]
        scores = np.concatenate([scores[far], at])[order]
        rising = np.append(True, np.diff(np.maximum.accumulate(scores)) > 1e-6)
        knots, scores = knots[rising], scores[rising]
    if len(knots) < 2:
        knots = np.array([values[0], values[-1]])
        scores = np.array([-edge, edge])
    deviation = float(np.sqrt(share @ (x - share @ x) ** 2))
    scores = _opened(np.where(np.abs(scores) < 1e-9, 0, scores), knots, size, deviation)
    scores = with_tails(scores)
    return knots, scores, slopes_at(knots, scores)


def _opened(scores: np.ndarray, knots: np.ndarray, size: float, deviation: float) -> np.ndarray:
    """Return ``scores`` with the voids between modes opened, away from the median.

    Normal scores close a void: a kernel would reach from one mode into the other. An interval whose
    density is less than a ``VOID`` of what ``size`` rows show on either side grows by its width in
    deviations of the column, at most one.
    """
    from scipy.special import ndtr

    mass, width = np.diff(ndtr(scores)), np.diff(knots)
    shown = np.maximum(1 - 2 / np.sqrt(size * mass), 0) * mass / width  # two standard errors less
    before, after = np.maximum.accumulate(shown), np.maximum.accumulate(shown[::-1])[::-1]
    void = mass / width < VOID * np.minimum(before, after)
    grown = np.append(0, np.cumsum(np.where(void, np.minimum(width / deviation, 1), 0)))
    return scores + grown - np.interp(0, scores, grown)
