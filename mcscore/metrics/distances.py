"""Distances between two sets of rows: sliced Wasserstein, MMD and energy."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mcscore._arrays import on_device, side_by_side
from mcscore._validation import as_key, at_least, two_tables


class _Two(NamedTuple):
    """Two tables around a common center and in a common unit, as JAX's arrays, and their rows' weights.

    Float32 holds differences of such rows, whatever offset and unit the tables come in.
    """

    x: Array
    y: Array
    x_weights: Array
    y_weights: Array
    unit: float

    @classmethod
    def of(cls, x: Any, y: Any, x_weights: Any, y_weights: Any) -> _Two:
        first, second = two_tables(x, y, weights=(x_weights, y_weights))
        center = first.weights @ first.values
        rows = first.values - center, second.values - center
        unit = float(
            np.sqrt(
                max(
                    t.weights @ np.mean(a**2, 1) for t, a in zip((first, second), rows, strict=True)
                )
            )
        )
        unit = unit or 1.0
        scaled = on_device([a / unit for a in rows])
        weights = on_device([first.weights, second.weights])
        return cls(scaled[0], scaled[1], weights[0], weights[1], unit)


def sliced_wasserstein(
    key: Array,
    x: Any,
    y: Any,
    *,
    projections: int = 256,
    x_weights: Any = None,
    y_weights: Any = None,
) -> float:
    """Return the sliced 2-Wasserstein distance: root mean square over random directions.

    Sorted projections are compared quantile by quantile, so the sizes may differ. O(p n log n).

    >>> x = jnp.linspace(0.0, 1.0, 100)[:, None]
    >>> round(sliced_wasserstein(jax.random.key(0), x, x + 2), 3)
    2.0
    """
    at_least(1, projections=projections)
    two = _Two.of(x, y, x_weights, y_weights)
    directions = np.asarray(
        jax.random.normal(as_key(key), (projections, two.x.shape[1]), two.x.dtype)
    )
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    first, second, *weights = (np.asarray(part) for part in two[:4])
    size = max(len(first), len(second))

    def squared(directions: np.ndarray) -> np.ndarray:
        one, other = (
            _quantiles(rows @ directions.T, weight, size)
            for rows, weight in zip((first, second), weights, strict=True)
        )
        return ((one - other) ** 2).mean(axis=1, dtype=np.float64)

    found = side_by_side(squared, np.array_split(directions, -(-projections // 16)))
    return two.unit * float(np.sqrt(np.concatenate(found).mean()))


def _quantiles(along: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Return the columns' quantiles at levels ``(k + 1/2) / size``, a row for each column."""
    n, columns = along.shape
    if np.ptp(weights) == 0:
        at = -(-n * (2 * np.arange(size) + 1) // (2 * size)) - 1
        return np.sort(along.T, axis=1)[:, at]
    levels, out = (np.arange(size) + 0.5) / size, np.empty((columns, size), along.dtype)
    for column, row in zip(along.T, out, strict=True):
        order = np.argsort(column)
        up_to = np.cumsum(weights[order], dtype=np.float64)
        at = np.searchsorted(up_to, levels * up_to[-1])
        row[:] = column[order][np.minimum(at, n - 1)]
    return out


class MMD(NamedTuple):
    """Squared maximum mean discrepancy and the level-0.05 threshold under equal laws."""

    value: float
    threshold: float


def mmd(
    key: Array,
    x: Any,
    y: Any,
    *,
    rows: int = 1000,
    permutations: int = 200,
    level: float = 0.05,
    x_weights: Any = None,
    y_weights: Any = None,
) -> MMD:
    """Return the unbiased squared MMD with a Gaussian kernel, and its permutation threshold.

    The bandwidth is the median distance of the pooled rows, of those that differ if most are equal.
    ``value > threshold`` rejects equality at ``level``. At most ``rows`` rows of each set are used, drawn
    at random, by their weights with replacement: O(rows^2 permutations).

    >>> x = jax.random.normal(jax.random.key(0), (200, 2))
    >>> value, threshold = mmd(jax.random.key(1), x, x + 3)
    >>> value > threshold
    True
    """
    two = _Two.of(x, y, x_weights, y_weights)
    keys = jax.random.split(as_key(key), 3)
    at_least(2, rows=rows)
    at_least(1, permutations=permutations)
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level!r}")
    m = min(rows, len(two.x), len(two.y))
    if m < 2:
        raise ValueError(f"x, y: expected at least 2 rows each, got {len(two.x)} and {len(two.y)}")
    picks = []
    for k, weights in zip(keys[:2], (two.x_weights, two.y_weights), strict=True):
        equal = float(jnp.ptp(weights)) == 0
        p = None if equal else weights
        picks.append(jax.random.choice(k, len(weights), (m,), not equal, p))
    both = jnp.concatenate([two.x[picks[0]], two.y[picks[1]]])
    row = np.concatenate([picks[0], len(two.x) + np.asarray(picks[1])])
    row = np.unique(row, return_inverse=True)[1]  # of those that were drawn
    first = int(row[:m].max()) + 1  # so many of the first set
    squares = np.asarray(_squared_distances(both, both))
    median = np.median(squares)  # NumPy selects, XLA would sort all
    if not median and squares.any():
        median = np.median(squares[squares > 0])
    values = np.asarray(
        _permuted_mmd(
            keys[2], both, row, first, jnp.asarray(median or 1.0, both.dtype), permutations
        )
    )
    return MMD(float(values[0]), float(np.quantile(values[1:], 1 - level)))


@partial(jax.jit, static_argnums=5)
def _permuted_mmd(
    key: Array, both: Array, row: Array, first: Array, median: Array, permutations: int
) -> Array:
    """Return the value, and those of permutations, in which the copies of a row stay together."""
    pairs = jnp.where(row[:, None] == row[None], 0, jnp.ones((), both.dtype))  # of different rows
    gram = pairs * jnp.exp(-_squared_distances(both, both) / median)  # exp(-r^2 / (2 h^2))
    places = jnp.arange(len(both))

    def value(place: Array) -> Array:
        # 2 (mean over same-set pairs - mean over cross pairs), each from two products.
        sign = jnp.where(place[row] < first, 1, -jnp.ones((), both.dtype))
        total, signed = jnp.sum(gram), sign @ gram @ sign
        count, balance = jnp.sum(pairs), sign @ pairs @ sign
        same = (total + signed) / jnp.maximum(count + balance, 1)
        return 2 * (same - (total - signed) / jnp.maximum(count - balance, 1))

    def permuted(key: Array) -> Array:
        drawn = jnp.where(places <= row.max(), jax.random.uniform(key, places.shape), jnp.inf)
        return value(jnp.argsort(jnp.argsort(drawn)))

    values = jax.lax.map(permuted, jax.random.split(key, permutations))
    return jnp.concatenate([value(places)[None], values])


def energy_distance(x: Any, y: Any, *, x_weights: Any = None, y_weights: Any = None) -> float:
    """Return ``2 E|X-Y| - E|X-X'| - E|Y-Y'|`` (unbiased), O(n^2 d) time and O(n) memory.

    >>> round(energy_distance(jnp.zeros((5, 1)), jnp.ones((5, 1))), 5)
    2.0
    """
    two = _Two.of(x, y, x_weights, y_weights)
    first, second = (two.x, two.x_weights), (two.y, two.y_weights)
    found = 2 * _mean_distance(*first, *second)
    for rows, weights in (first, second):  # pairs of different rows
        apart = 1 - float(jnp.sum(weights**2))
        found -= _mean_distance(rows, weights, rows, weights) / (apart if apart > 1e-6 else 1.0)
    return two.unit * found


def _mean_distance(x: Array, x_weights: Array, y: Array, y_weights: Array) -> float:
    per_row = np.asarray(_distances(x, y, y_weights), np.float64)
    return float(np.asarray(x_weights, np.float64) @ per_row)


@jax.jit
def _distances(x: Array, y: Array, y_weights: Array) -> Array:
    """Return the mean distance of every row of ``x`` to those of ``y``."""

    def one(row: Array) -> Array:
        return y_weights @ jnp.sqrt(jnp.sum((y - row[None]) ** 2, 1))

    return jax.lax.map(one, x, batch_size=64)


def _squared_distances(x: Array, y: Array) -> Array:
    product = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum(jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None] - 2 * product, 0)
