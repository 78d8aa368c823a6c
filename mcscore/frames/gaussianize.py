"""Gaussianized columns: each sent to normal scores by a smooth monotone map, then whitened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from mcscore._arrays import by_column, floating, in_chunks, library_of, like, pytree, shapes
from mcscore._validation import at_least
from mcscore.frames.affine import Affine, AffineFrame
from mcscore.frames.frame import Frame, FrameKind, require_variation
from mcscore.frames.splines import (
    distribution,
    fit_spline,
    pad,
    slopes_at,
    spline,
    spline_inverse,
    with_tails,
)

CALIBRATING_POINTS = 400  # of a column's distribution function
SQUEEZED = 0.1  # of the tail between last knot and farthest row: where draws beyond that row go


@pytree()
@dataclass(frozen=True, eq=False)
class GaussianizedFrame(Frame):
    """Column by column to normal scores, ``u = f_j(x_j)``, then ``y = (u - shift) @ matrix``.

    ``f_j`` is a monotone rational-quadratic spline through ``(knots, scores)`` with given slopes
    (Gregory and Delbourgo 1982), and beyond the last knot ``(x1, u1)`` on either side a power law,

        |u| = sqrt(u1^2 + 2 a log(1 + |x - x1| / c)),      c = a / (u1 f'(x1)),      a = 3,

    once continuously differentiable, so that a value far out costs its logarithm only. All in closed
    form, both ways. Columns with fewer knots repeat their last one.

    Attributes:
        knots: (d, k) increasing values.
        scores: (d, k) their normal scores, with the voids between a column's modes opened.
        slopes: (d, k) derivatives ``du/dx`` there.
        limits: (2, d) the farthest rows. The power law has no end, and one draw of it could decide a
            column's variance: ``restore`` squeezes draws beyond these into a tenth of the tail more.
        affine: The whitening that follows.
    """

    knots: Any
    scores: Any
    slopes: Any
    limits: Any
    shift: Any
    matrix: Any
    inverse_matrix: Any
    __repr__ = shapes

    @property
    def affine(self) -> AffineFrame:
        """The whitening of the scores."""
        return AffineFrame(self.shift, self.matrix, self.inverse_matrix)

    def forward(self, x: Any) -> Any:
        """Return the whitened normal scores of ``x``."""
        return in_chunks(lambda part: self.affine.forward(self.column_scores(part)[0]), x)

    def log_det(self, x: Any) -> Any:
        """Return ``sum_j log f_j'(x_j)`` plus that of the whitening."""
        scores, log_slopes = self.column_scores(x)
        return log_slopes.sum(1) + self.affine.log_det(scores)

    def inverse(self, y: Any) -> Any:
        """Return the values whose whitened scores are ``y``."""
        return self.of_column_scores(self.affine.inverse(y))

    def calibrated(
        self,
        tails: Callable[[np.ndarray, np.ndarray], np.ndarray],
        x: np.ndarray,
        weights: np.ndarray,
    ) -> GaussianizedFrame:
        """Return the frame whose scores at the knots are the law's quantiles at the data's levels.

        The marginals of a law fitted to the scores are only close to theirs: kernels widen them. A
        knot, where the data's distribution function is ``Phi(z)``, moves to the score where the law's
        ``F`` is, so that every column's marginal is again the data's. ``F`` is exact on a grid and
        linear in normal scores between its points.
        """
        from scipy.special import ndtri

        end = 1 + 1.5 * np.abs(self.scores).max()
        grid = np.linspace(-end, end, CALIBRATING_POINTS)[:, None]
        mass = np.asarray(tails(self.inverse_matrix, grid - self.shift), np.float64)
        side = np.where(grid > self.shift, -1, 1)
        level = side * ndtri(np.clip(mass, np.finfo(np.float64).tiny, 1 - 1e-9))
        level = np.maximum.accumulate(level)
        scores, slopes = np.empty_like(self.scores), np.empty_like(self.slopes)
        longest, share = scores.shape[1], weights / weights.sum()
        for j, (column, knots) in enumerate(zip(x.T, self.knots, strict=True)):
            knots = knots[: 1 + np.count_nonzero(np.diff(knots))]
            z, at = ndtri(np.interp(knots, *distribution(column, share))), level[:, j]
            moved = with_tails(z + np.interp(z, at, grid[:, 0] - at))
            scores[j], slopes[j] = pad(moved, longest), pad(slopes_at(knots, moved), longest)
        return replace(self, scores=scores, slopes=slopes)

    def part(self, columns: Sequence[int], dimension: int) -> tuple[GaussianizedFrame, Any]:
        """Return the columns' own scores, ``(f_j(x_j) - shift_j) / scale_j``, see `Frame`."""
        at = np.asarray(columns)
        affine, matrix = self.affine.part(columns, dimension)
        tables = (self.knots[at], self.scores[at], self.slopes[at], self.limits[:, at])
        parts = (affine.shift, affine.matrix, affine.inverse_matrix)
        return GaussianizedFrame(*tables, *parts), matrix

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> GaussianizedFrame:
        """Return the frame with its whitening recalibrated, see `Frame`."""
        affine = self.affine.recalibrated(y, wanted)
        return replace(
            self, shift=affine.shift, matrix=affine.matrix, inverse_matrix=affine.inverse_matrix
        )

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d), those beyond the limits squeezed, in their order."""
        x = floating(x)
        library, number = library_of(x), jnp.finfo(x.dtype)
        least, most = limits = like(self.limits, x)[:, None]
        tails = library.abs(limits - like(self.knots, x)[:, [0, -1]].T[:, None])
        room = library.maximum(SQUEEZED * tails, number.eps * library.ptp(limits, 0, keepdims=True))
        beyond = library.clip(library.stack([least - x, x - most]), 0, number.max / 4)  # inf too
        below, above = room * (beyond / (room + beyond))
        return library.clip(x, least, most) + above - below

    def column_scores(self, x: Any) -> tuple[Any, Any]:
        """Return the normal scores, not whitened, see `Frame`."""
        return by_column(spline, x, *self._tables)

    def of_column_scores(self, u: Any) -> Any:
        """Return the values of normal scores that are not whitened."""
        return by_column(spline_inverse, u, *self._tables)

    @property
    def _tables(self) -> tuple[Any, Any, Any]:
        return self.knots, self.scores, self.slopes


@dataclass(frozen=True)
class Gaussianize(FrameKind):
    """Send every column to normal scores by a smooth monotone map, then whiten.

    Normal scores would close the voids between modes and let kernels reach across. Where the density is
    less than a quarter of that on either side, they stay open.

    Args:
        knots: Number of knots per column; by default it grows with the number of rows, to one for every
            170 rows and at most 250.
        dequantize: Spread tied values (integers, a lattice, atoms) over intervals of their own before
            anything is fitted, so that likelihood cannot be bought by sharpening on ties, and put draws back.

    >>> x = np.exp(np.random.default_rng(0).normal(size=(1000, 1)))
    >>> y = Gaussianize().fit(x).forward(x)
    >>> bool(abs(y.mean()) < 1e-9 and abs(y.std() - 1) < 1e-9)
    True
    """

    knots: int | None = None
    dequantize: bool = True
    breaks: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.knots is not None:
            at_least(2, knots=self.knots)

    @property
    def spreads_ties(self) -> bool:  # type: ignore[override]
        """Whether ties are to be spread first."""
        return self.dequantize

    def with_breaks(self, breaks: tuple[np.ndarray, ...]) -> Gaussianize:
        """Return the kind with knots at ``breaks`` too."""
        return replace(self, breaks=breaks)

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> GaussianizedFrame:
        """Return the frame fitted to ``x`` (n, d) with row ``weights``.

        Raises:
            ValueError: If a column is constant.
        """
        require_variation(x)
        share = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
        size = 1 / np.sum(share**2)
        count = self.knots or int(np.clip(max(1.5 * size**0.35, size / 170), 6, 250))
        breaks = self.breaks or ((),) * x.shape[1]
        splines = [
            fit_spline(column, share, count, size, np.asarray(at, float))
            for column, at in zip(x.T, breaks, strict=True)
        ]
        longest = max(len(knots) for knots, *_ in splines)
        tables = (
            np.stack([pad(part, longest) for part in parts]) for parts in zip(*splines, strict=True)
        )
        knots, scores, slopes = tables
        limits, d = np.stack([x.min(0), x.max(0)]), x.shape[1]
        plain = GaussianizedFrame(knots, scores, slopes, limits, np.zeros(d), np.eye(d), np.eye(d))
        affine = Affine(whiten=True).fit(plain.forward(x), share)
        return replace(
            plain, shift=affine.shift, matrix=affine.matrix, inverse_matrix=affine.inverse_matrix
        )
