"""How the place of a tied row goes with the row's other columns."""

from __future__ import annotations

import numpy as np

DEPENDENT = 0.9  # of a place's variance that other columns decide, at most
SAMPLE = 20_000  # rows that tell how columns depend on each other
FLAT = 1e-6  # variance of normal scores below which nothing is told


class Scores:
    """Normal scores of all columns, and how the other columns decide the places of tied rows."""

    def __init__(self, generator: np.random.Generator, x: np.ndarray, weights: np.ndarray):
        self.x, self.some = x, np.arange(len(x))
        if len(x) > SAMPLE:
            self.some = np.sort(generator.permutation(len(x))[:SAMPLE])
        self.known: dict[int, np.ndarray] = {}
        some = weights[self.some] / weights[self.some].sum()
        part = np.stack([self.of(j)[self.some] for j in range(x.shape[1])], 1)
        self.center = some @ part
        z = part - self.center
        self.covariance = (some * z.T) @ z

    def of(self, j: int) -> np.ndarray:
        """Return a column's normal scores of middle ranks among a sample of the rows, (n,)."""
        from scipy.special import ndtri

        if j in self.known:
            return self.known[j]
        column = self.x[:, j]
        order = np.sort(column[self.some])
        low, high = (np.searchsorted(order, column, side) for side in ("left", "right"))
        least = 0.5 / len(order)
        level = np.clip((low + high) / (2 * len(order)), least, 1 - least)
        self.known[j] = ndtri(level).astype(np.float32)
        return self.known[j]

    def drive(self, j: int) -> tuple[np.ndarray, float]:
        """Return of every row a standard score that orders tied rows of column ``j``, and its share.

        Within a value the other columns should go with the place as they go with the value: with slope
        ``B`` of their scores on the column's, and ``S`` their covariance that it does not explain, the
        places are driven by ``B' S^-1 (their residual)``; the share of a place's variance is
        ``B' S^-1 B`` times the variance of the score that the ties hide, at most ``DEPENDENT``.
        """
        n, d = self.x.shape
        others = [k for k in range(d) if k != j]
        covariance, center = self.covariance, self.center
        variance = covariance[j, j]
        if variance < FLAT:
            return np.zeros(n), 0.0
        hidden = max(1 - variance, 0.0)
        slope = covariance[others, j] / variance
        left = covariance[np.ix_(others, others)] - np.outer(slope, slope) * variance
        left += 1e-3 * np.eye(d - 1)
        along = np.linalg.solve(left, slope)
        size = float(slope @ along)
        share = min(hidden * size, DEPENDENT)
        if share * n < 4 * d:  # no more than chance
            return np.zeros(n), 0.0
        total = np.zeros(n)
        for k, factor in zip(others, along, strict=True):
            total += factor * (self.of(k) - center[k])
        total -= size * (self.of(j) - center[j])
        return total / np.sqrt(max(size, 1e-300)), share
