"""Frames: invertible maps between the user's columns and the coordinates in which the law lives.

A frame is asked for by a frozen value (`Affine()`), fitted to data once on the host, and from then on
a pytree of arrays with three methods:

    y = frame.forward(x)        x = frame.inverse(y)        frame.log_det(x) = log |det dy/dx|

so that a density in the user's units is ``log p(x) = log p(y) + log_det(x)``.
Forward maps accept NumPy arrays and keep their float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _like(parameter: Any, x: Any) -> Any:
    """Return ``parameter`` as an array of ``x``'s library and precision."""
    library = np if isinstance(x, np.ndarray) else jnp
    return library.asarray(parameter, dtype=x.dtype)


@dataclass(frozen=True)
class Frame:
    """Base of fitted frames."""

    def forward(self, x: Any) -> Any:
        """Return ``y`` (b, d) for ``x`` (b, d) in the user's units."""
        raise NotImplementedError

    def inverse(self, y: Any) -> Any:
        """Return ``x`` (b, d) in the user's units for ``y`` (b, d)."""
        raise NotImplementedError

    def log_det(self, x: Any) -> Any:
        """Return ``log |det dy/dx|`` (b,) at ``x`` (b, d)."""
        raise NotImplementedError


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

    def forward(self, x: Any) -> Any:
        """Return ``(x - shift) @ matrix``."""
        return _matmul(x - _like(self.shift, x)[None], _like(self.matrix, x))

    def inverse(self, y: Any) -> Any:
        """Return ``y @ inverse_matrix + shift``."""
        return _matmul(y, _like(self.inverse_matrix, y)) + _like(self.shift, y)[None]

    def log_det(self, x: Any) -> Any:
        """Return ``log |det matrix|`` for every row."""
        log_det = jnp.linalg.slogdet(_like(self.matrix, jnp.asarray(x)))[1]
        return jnp.broadcast_to(log_det, x.shape[:1])


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
        correlation = (centred / scale).T @ (share[:, None] * (centred / scale))
        values, vectors = np.linalg.eigh(correlation)
        # Directions flatter than 1e-6 of the rest are noise of the arithmetic: do not blow them up.
        root = np.sqrt(np.maximum(values, 1e-6 * values.max()))
        matrix = (vectors / root) @ vectors.T / scale[:, None]
        return AffineFrame(shift, matrix, vectors * root @ vectors.T * scale[None, :])


FITTED = {frame.__name__: frame for frame in (AffineFrame,)}  # what a saved generator may hold
