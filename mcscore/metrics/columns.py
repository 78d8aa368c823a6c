"""Columns one by one: their divergence and moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mcscore._validation import Table, at_least, of_type, two_tables


def column_kl(
    x: Any,
    y: Any,
    *,
    bandwidth: float = 0.2,
    points: int = 1000,
    x_weights: Any = None,
    y_weights: Any = None,
) -> Float[np.ndarray, "d"]:
    """Return ``KL(x || y)`` of every column by kernel density estimates, as the paper reports.

    Both densities are SciPy's Gaussian KDE with bandwidth factor 0.2 on 1000 equal points over the
    range of ``x``, normalized on that grid. ``ValueError`` if a column is constant.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> column_kl(x, x)
    array([0., 0.])
    """
    from scipy.stats import entropy, gaussian_kde

    tables = two_tables(x, y, weights=(x_weights, y_weights))
    for name, table in zip(("x", "y"), tables, strict=True):
        if len(table) < 2:
            raise ValueError(f"{name}: expected two rows at least, got {len(table)}")
        table.require_variation()
    at_least(2, points=points)
    of_type((int, float), "0.2", bandwidth=bandwidth)
    if not 1e-30 < bandwidth < 1e30:
        raise ValueError(f"bandwidth: expected a positive number, got {bandwidth}")
    out = np.zeros(tables[0].values.shape[1])
    for j in range(len(out)):
        column = tables[0].values[:, j]
        grid = np.linspace(column.min(), column.max(), points)
        p, q = (
            gaussian_kde(table.values[:, j], bandwidth, weights=table.weights)(grid)
            for table in tables
        )
        # Densities below float64's smallest number would make the divergence infinite.
        out[j] = entropy(p, np.maximum(q, np.finfo(float).tiny))
    return out


class Moments(NamedTuple):
    """Mean and standard deviation of every column."""

    mean: Float[np.ndarray, "d"]
    std: Float[np.ndarray, "d"]


def column_moments(x: Any, *, weights: Any = None) -> Moments:
    """Return the mean and standard deviation of every column, in float64.

    >>> column_moments(np.array([[1.0], [3.0]]))
    Moments(mean=array([2.]), std=array([1.]))
    """
    table = Table.of(x, weights)
    mean = table.weights @ table.values
    return Moments(mean, np.sqrt(table.weights @ (table.values - mean) ** 2))
