"""Frames: invertible maps between the user's columns and the coordinates in which the law lives.

A frame is asked for by a frozen value (`Affine()`), fitted to data once on the host, and from then on
a pytree of arrays with three methods:

    y = frame.forward(x)        x = frame.inverse(y)        frame.log_det(x) = log |det dy/dx|

so that a density in the user's units is ``log p(x) = log p(y) + log_det(x)``. Draws pass through
``frame.restore(x)``, which ends far tails and, where ties were spread before fitting, puts draws back
on them. All of them take NumPy arrays too and keep their float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcscore.columns import by_column, in_chunks, library_of, like
from mcscore.shown import shapes
from mcscore.splines import (
    distribution,
    fit_spline,
    pad,
    slopes_at,
    spline,
    spline_inverse,
    with_tails,
)
from mcscore.ties import tied

CALIBRATING_POINTS = 400  # of a column's distribution function
SQUEEZED = 0.1  # of the tail between last knot and farthest row: where draws beyond that row go


@dataclass(frozen=True)
class Frame:
    """Base of fitted frames.

    Attributes:
        ties: Tied values of every column and the ends of the interval over which each was spread,
            (3, d, m), padded with inf; None where nothing was spread. See ``ties``.
    """

    ties: Any = field(default=None, kw_only=True)

    def forward(self, x: Any) -> Any:
        """Return ``y`` (b, d) for ``x`` (b, d) in the user's units."""
        raise NotImplementedError

    def inverse(self, y: Any) -> Any:
        """Return ``x`` (b, d) in the user's units for ``y`` (b, d)."""
        raise NotImplementedError

    def log_det(self, x: Any) -> Any:
        """Return ``log |det dy/dx|`` (b,) at ``x`` (b, d)."""
        raise NotImplementedError

    def calibrated(
        self,
        tails: Callable[[np.ndarray, np.ndarray], np.ndarray],
        x: np.ndarray,
        weights: np.ndarray,
    ) -> Frame:
        """Return the frame that gives a law the marginals of ``x`` (n, d), weights (n,), if it can.

        ``tails(onto, points)``, (g, a): the law's mass of ``(y @ onto)_j`` on the far side of
        ``points[:, j]`` from zero, see ``conditioning.tails``.
        """
        return self

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> Frame:
        """Return the frame whose coordinates give ``y`` (n, d) the mean and covariance of ``wanted``.

        Its affine part takes up the difference: ``y`` becomes ``y @ A + b``. Unchanged where a
        covariance is singular or not finite.
        """
        raise NotImplementedError

    def part(self, columns: Sequence[int]) -> tuple[Frame, Any]:
        """Return the frame of some columns alone, and the matrix (d, len(columns)) that leads to it.

        Its coordinates are ``y @ matrix``, scaled to unit length of the matrix's columns.
        """
        raise NotImplementedError

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d) with every value in the interval of a tie put back on it."""
        return x if self.ties is None else tied(x, self.ties)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AffineFrame(Frame):
    """``y = (x - shift) @ matrix``, with the inverse matrix kept beside.

    >>> frame = Affine().fit(np.array([[0.0, 10.0], [2.0, 30.0]]))
    >>> frame.forward(np.array([[1.0, 40.0]]))
    array([[0., 2.]])
    """

    shift: Any
    matrix: Any
    inverse_matrix: Any
    __repr__ = shapes

    def forward(self, x: Any) -> Any:
        """Return ``(x - shift) @ matrix``."""
        return _matmul(x - like(self.shift, x)[None], like(self.matrix, x))

    def inverse(self, y: Any) -> Any:
        """Return ``y @ inverse_matrix + shift``."""
        return _matmul(y, like(self.inverse_matrix, y)) + like(self.shift, y)[None]

    def log_det(self, x: Any) -> Any:
        """Return ``log |det matrix|`` for every row."""
        library = library_of(x)
        log_det = library.linalg.slogdet(like(self.matrix, x))[1]
        return library.broadcast_to(log_det, x.shape[:1])

    def part(self, columns: Sequence[int]) -> tuple[AffineFrame, Any]:
        """Return the columns ``(x_j - shift_j) / scale_j``, see `Frame`."""
        at = np.asarray(columns)
        library = library_of(self.inverse_matrix)
        scale = library.linalg.norm(self.inverse_matrix[:, at], axis=0)
        ties = None if self.ties is None else self.ties[:, at]
        frame = AffineFrame(self.shift[at], library.diag(1 / scale), library.diag(scale), ties=ties)
        return frame, self.inverse_matrix[:, at] / scale[None]

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> AffineFrame:
        """Return ``(x - shift) @ matrix`` followed by the inverse of ``A`` and ``b``, see `Frame`."""
        roots = []
        for points in (y, wanted):
            covariance = np.atleast_2d(np.cov(np.asarray(points, np.float64), rowvar=False))
            if not np.isfinite(covariance).all():
                return self
            if np.linalg.matrix_rank(covariance) < len(covariance):
                return self
            roots.append(np.linalg.cholesky(covariance))
        matrix = np.linalg.solve(roots[0].T, roots[1].T)  # A, nearly the identity
        shift = np.mean(wanted, 0, np.float64) - np.mean(y, 0, np.float64) @ matrix
        return replace(
            self,
            shift=self.shift + shift @ self.inverse_matrix,
            matrix=self.matrix @ np.linalg.inv(matrix),
            inverse_matrix=matrix @ self.inverse_matrix,
        )


def _matmul(a: Any, b: Any) -> Any:
    return a @ b if isinstance(a, np.ndarray) else jnp.matmul(a, b, precision="highest")


@dataclass(frozen=True)
class Identity:
    """Leave the columns as they are."""

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> AffineFrame:
        """Return the frame ``y = x``."""
        d = x.shape[1]
        return AffineFrame(np.zeros(d), np.eye(d), np.eye(d))


@dataclass(frozen=True)
class Affine:
    """Standardise every column, or whiten them all.

    Args:
        whiten: Rotate and scale to unit covariance instead of scaling column by column.
    """

    whiten: bool = False

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> AffineFrame:
        """Return the frame in which ``x`` (n, d), weighted, has mean 0 and variance 1."""
        share = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
        shift = share @ x
        centred = x - shift
        scale = np.sqrt(share @ centred**2)
        if not self.whiten:
            return AffineFrame(shift, np.diag(1 / scale), np.diag(scale))
        centred /= scale
        correlation = centred.T @ (share[:, None] * centred)
        values, vectors = np.linalg.eigh(correlation)
        # Directions flatter than 1e-6 of the rest are noise of the arithmetic: do not blow them up.
        root = np.sqrt(np.maximum(values, 1e-6 * values.max()))
        matrix = (vectors / root) @ vectors.T / scale[:, None]
        return AffineFrame(shift, matrix, vectors * root @ vectors.T * scale[None, :])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
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
        return in_chunks(lambda part: self.affine.forward(self._scores(part)[0]), x)

    def log_det(self, x: Any) -> Any:
        """Return ``sum_j log f_j'(x_j)`` plus that of the whitening."""
        scores, log_slopes = self._scores(x)
        return log_slopes.sum(1) + self.affine.log_det(scores)

    def inverse(self, y: Any) -> Any:
        """Return the values whose whitened scores are ``y``."""
        return by_column(spline_inverse, self.affine.inverse(y), *self._tables)

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

    def part(self, columns: Sequence[int]) -> tuple[GaussianizedFrame, Any]:
        """Return the columns' own scores, ``(f_j(x_j) - shift_j) / scale_j``, see `Frame`."""
        at = np.asarray(columns)
        affine, matrix = replace(self.affine, ties=self.ties).part(columns)
        tables = (self.knots[at], self.scores[at], self.slopes[at], self.limits[:, at])
        parts = (affine.shift, affine.matrix, affine.inverse_matrix)
        return GaussianizedFrame(*tables, *parts, ties=affine.ties), matrix

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> GaussianizedFrame:
        """Return the frame with its whitening recalibrated, see `Frame`."""
        affine = self.affine.recalibrated(y, wanted)
        return replace(
            self, shift=affine.shift, matrix=affine.matrix, inverse_matrix=affine.inverse_matrix
        )

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d), those beyond the limits squeezed, in their order, ties restored."""
        library, number = library_of(x), jnp.finfo(x.dtype)
        least, most = limits = like(self.limits, x)[:, None]
        tails = library.abs(limits - like(self.knots, x)[:, [0, -1]].T[:, None])
        room = library.maximum(SQUEEZED * tails, number.eps * library.ptp(limits, 0, keepdims=True))
        beyond = library.clip(library.stack([least - x, x - most]), 0, number.max / 4)  # inf too
        below, above = room * (beyond / (room + beyond))
        return super().restore(library.clip(x, least, most) + above - below)

    @property
    def _tables(self) -> tuple[Any, Any, Any]:
        return self.knots, self.scores, self.slopes

    def _scores(self, x: Any) -> tuple[Any, Any]:
        return by_column(spline, x, *self._tables)


@dataclass(frozen=True)
class Gaussianize:
    """Send every column to normal scores by a smooth monotone map, then whiten.

    Normal scores would close the voids between modes and let kernels reach across. Where the density is
    less than a quarter of that on either side, they stay open.

    Args:
        knots: Number of knots per column; by default it grows with the number of rows, to one for every
            170 rows and at most 250.
        dequantize: Spread tied values (integers, a lattice, atoms) uniformly over their gap before
            anything is fitted, so that likelihood cannot be bought by sharpening on ties.

    >>> x = np.exp(np.random.default_rng(0).normal(size=(1000, 1)))
    >>> y = Gaussianize().fit(x).forward(x)
    >>> bool(abs(y.mean()) < 1e-9 and abs(y.std() - 1) < 1e-9)
    True
    """

    knots: int | None = None
    dequantize: bool = True

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> GaussianizedFrame:
        """Return the frame fitted to ``x`` (n, d) with row ``weights``."""
        share = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
        size = 1 / np.sum(share**2)
        count = self.knots or int(np.clip(max(1.5 * size**0.35, size / 170), 6, 250))
        splines = [fit_spline(column, share, count, size) for column in x.T]
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


FITTED = {
    frame.__name__: frame for frame in (AffineFrame, GaussianizedFrame)
}  # what a saved generator may hold
