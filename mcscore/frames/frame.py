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
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

COARSE = 1e-3  # of a coordinate's standard deviation


def require_variation(x: np.ndarray) -> None:
    """Raise ``ValueError`` if ``x`` (n, d) is one row, or a column constant: they have no scale."""
    if len(x) == 1:
        raise ValueError("x: expected at least two rows, got 1")
    for j in np.flatnonzero(np.ptp(x, axis=0) == 0):
        raise ValueError(
            f"x: column {j} is constant ({x[0, j]:g}): a frame cannot scale it; leave it out"
        )


@dataclass(frozen=True)
class FrameKind:
    """Base of what can be asked for as a frame: a kind that is yet to be fitted, or a fitted frame.

    ``spreads_ties`` says whether ties are to be spread before it is fitted; None leaves it to the kernel.
    """

    spreads_ties: ClassVar[bool | None] = None

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> Frame:
        """Return the frame fitted to ``x`` (n, d) with row ``weights`` (n,)."""
        raise NotImplementedError

    def with_breaks(self, breaks: tuple[np.ndarray, ...]) -> FrameKind:
        """Return the kind for columns whose distribution functions bend at ``breaks``, (k,) for each."""
        return self


@dataclass(frozen=True)
class Frame(FrameKind):
    """Base of fitted frames. What they were fitted to had its ties spread or not: they spread none."""

    spreads_ties: ClassVar[bool | None] = False

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> Frame:
        """Return the frame as it is."""
        return self

    def forward(self, x: Any) -> Any:
        """Return ``y`` (b, d) for ``x`` (b, d) in the user's units."""
        raise NotImplementedError

    def inverse(self, y: Any) -> Any:
        """Return ``x`` (b, d) in the user's units for ``y`` (b, d)."""
        raise NotImplementedError

    def log_det(self, x: Any) -> Any:
        """Return ``log |det dy/dx|`` (b,) at ``x`` (b, d)."""
        raise NotImplementedError

    def places(self, x: Any) -> tuple[Any, Any]:
        """Return coordinates (k, b, d) of the places where ``x`` (b, d) can be, and their ``log_det`` (k, b).

        One place, but for tied values: a density there is the mean over the places.
        """
        return self.forward(x)[None], self.log_det(x)[None]

    def column_scores(self, x: Any) -> tuple[Any, Any]:
        """Return ``u`` (b, d), each column's own coordinate, in which a law is smooth, and ``log du/dx``."""
        return x, 0 * x

    def of_column_scores(self, u: Any) -> Any:
        """Return the ``x`` (b, d) whose ``column_scores`` are ``u``."""
        return u

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

    def part(self, columns: Sequence[int], dimension: int) -> tuple[Frame, Any]:
        """Return the frame of some columns alone, and the matrix (d, len(columns)) that leads to it.

        The whole has ``dimension`` columns. The part's coordinates are ``y @ matrix``, scaled to unit
        length of the matrix's columns.
        """
        raise NotImplementedError

    def is_coarse(self, y: np.ndarray, dtype: Any) -> bool:
        """Return whether values of a ``dtype`` are too coarse for the columns at coordinates ``y``, float64.

        So are float32's around 1e6 for a column that spreads by one.
        """
        x = self.inverse(y)
        error = self.forward(x.astype(dtype).astype(np.float64)) - self.forward(x)
        return bool(np.abs(error).max() > COARSE)

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d) made values that the table can have: far tails ended, ties put back."""
        return x


class OuterFrame(Frame):
    """Base of frames that change columns one by one and hand them on to an ``inner`` frame."""

    inner: Frame

    def enter(self, x: Any) -> tuple[Any, Any]:
        """Return the columns (b, d) that the inner frame sees, and what a log density gains, per column."""
        raise NotImplementedError

    def leave(self, s: Any) -> Any:
        """Return the columns (b, d) of those that the inner frame sees."""
        raise NotImplementedError

    def forward(self, x: Any) -> Any:
        """Return the inner coordinates of the changed columns."""
        return self.inner.forward(self.enter(x)[0])

    def inverse(self, y: Any) -> Any:
        """Return the columns of inner coordinates."""
        return self.leave(self.inner.inverse(y))

    def log_det(self, x: Any) -> Any:
        """Return the inner frame's and what the change adds."""
        s, gains = self.enter(x)
        return self.inner.log_det(s) + gains.sum(1)

    def places(self, x: Any) -> tuple[Any, Any]:
        """Return the inner frame's places, see `Frame`."""
        s, gains = self.enter(x)
        y, gain = self.inner.places(s)
        return y, gain + gains.sum(1)[None]

    def column_scores(self, x: Any) -> tuple[Any, Any]:
        """Return the inner frame's, see `Frame`."""
        s, gains = self.enter(x)
        u, slopes = self.inner.column_scores(s)
        return u, slopes + gains

    def of_column_scores(self, u: Any) -> Any:
        """Return the columns of the inner frame's, see `Frame`."""
        return self.leave(self.inner.of_column_scores(u))

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> OuterFrame:
        """Return the frame with the inner one recalibrated, see `Frame`."""
        return replace(self, inner=self.inner.recalibrated(y, wanted))

    def restore(self, x: Any) -> Any:
        """Return draws ``x`` (b, d) restored by the inner frame."""
        return self.leave(self.inner.restore(self.enter(x)[0]))
