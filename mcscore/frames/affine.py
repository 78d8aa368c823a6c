"""The identity, and affine frames: columns standardized or whitened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from mcscore._arrays import floating, library_of, like, pytree, shapes
from mcscore.frames.frame import Frame, FrameKind, require_variation


@pytree()
@dataclass(frozen=True, eq=False)
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
        x = floating(x)
        return _matmul(x - like(self.shift, x)[None], like(self.matrix, x))

    def inverse(self, y: Any) -> Any:
        """Return ``y @ inverse_matrix + shift``."""
        y = floating(y)
        return _matmul(y, like(self.inverse_matrix, y)) + like(self.shift, y)[None]

    def log_det(self, x: Any) -> Any:
        """Return ``log |det matrix|`` for every row."""
        library = library_of(x)
        log_det = library.linalg.slogdet(like(self.matrix, x))[1]
        return library.broadcast_to(log_det, x.shape[:1])

    def part(self, columns: Sequence[int], dimension: int) -> tuple[AffineFrame, Any]:
        """Return the columns ``(x_j - shift_j) / scale_j``, see `Frame`."""
        at = np.asarray(columns)
        library = library_of(self.inverse_matrix)
        scale = library.linalg.norm(self.inverse_matrix[:, at], axis=0)
        frame = AffineFrame(self.shift[at], library.diag(1 / scale), library.diag(scale))
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


@pytree()
@dataclass(frozen=True)
class Identity(Frame):
    """Leave the columns as they are: a frame that needs no fitting.

    >>> Identity().forward(np.ones((1, 2)))
    array([[1., 1.]])
    """

    spreads_ties: ClassVar[bool | None] = None

    def forward(self, x: Any) -> Any:
        """Return ``x``."""
        return x

    def inverse(self, y: Any) -> Any:
        """Return ``y``."""
        return y

    def log_det(self, x: Any) -> Any:
        """Return 0 for every row."""
        return library_of(x).zeros(x.shape[:1], floating(x).dtype)

    def part(self, columns: Sequence[int], dimension: int) -> tuple[Identity, Any]:
        """Return the columns as they are, see `Frame`."""
        at = np.asarray(columns)
        return Identity(), np.eye(dimension)[:, at]

    def recalibrated(self, y: np.ndarray, wanted: np.ndarray) -> AffineFrame:
        """Return the affine frame that gives ``y`` the moments of ``wanted``, see `Frame`."""
        d = np.shape(y)[1]
        plain = AffineFrame(np.zeros(d), np.eye(d), np.eye(d))
        return plain.recalibrated(y, wanted)


@dataclass(frozen=True)
class Affine(FrameKind):
    """Standardize every column, or whiten them all.

    Args:
        whiten: Rotate and scale to unit covariance instead of scaling column by column.
    """

    whiten: bool = False

    def fit(self, x: np.ndarray, weights: np.ndarray | None = None) -> AffineFrame:
        """Return the frame in which ``x`` (n, d), weighted, has mean 0 and variance 1.

        Raises:
            ValueError: If a column is constant.
        """
        require_variation(x)
        share = np.full(len(x), 1 / len(x)) if weights is None else weights / np.sum(weights)
        shift = share @ x
        centered = x - shift
        scale = np.sqrt(share @ centered**2)
        if not self.whiten:
            return AffineFrame(shift, np.diag(1 / scale), np.diag(scale))
        centered /= scale
        correlation = centered.T @ (share[:, None] * centered)
        values, vectors = np.linalg.eigh(correlation)
        # Directions flatter than 1e-6 of the rest are noise of the arithmetic: do not blow them up.
        root = np.sqrt(np.maximum(values, 1e-6 * values.max()))
        matrix = (vectors / root) @ vectors.T / scale[:, None]
        return AffineFrame(shift, matrix, vectors * root @ vectors.T * scale[None, :])
