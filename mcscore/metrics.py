"""Distances between two sets of rows, and what samplers are judged by. Arrays in, scalars out.

All compare rows in the units they come in: standardize first where columns differ in scale.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import host_generator, on_device
from mcscore._optional import needed
from mcscore._validation import Table, as_key, at_least, two_tables


def _two_arrays(x: Any, y: Any) -> tuple[Array, Array]:
    first, second = two_tables(x, y)
    return on_device(first.values), on_device(second.values)


def sliced_wasserstein(key: Array, x: Any, y: Any, *, projections: int = 256) -> float:
    """Return the sliced 2-Wasserstein distance: root mean square over random directions.

    Sorted projections are compared quantile by quantile, so the sizes may differ. O(p n log n).

    >>> x = jnp.linspace(0.0, 1.0, 100)[:, None]
    >>> round(sliced_wasserstein(jax.random.key(0), x, x + 2), 3)
    2.0
    """
    at_least(1, projections=projections)
    x, y = _two_arrays(x, y)
    return float(_sliced_wasserstein(as_key(key), x, y, projections))


@partial(jax.jit, static_argnums=3)
def _sliced_wasserstein(key: Array, x: Array, y: Array, projections: int) -> Array:
    directions = jax.random.normal(key, (projections, x.shape[1]), x.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    levels = (jnp.arange(max(len(x), len(y)), dtype=x.dtype) + 0.5) / max(len(x), len(y))

    def quantiles(points: Array, direction: Array) -> Array:
        ordered = jnp.sort(jnp.matmul(points, direction, precision="highest"))
        return ordered[(levels * len(points)).astype(int)]

    def squared(direction: Array) -> Array:
        return jnp.mean((quantiles(x, direction) - quantiles(y, direction)) ** 2)

    return jnp.sqrt(jnp.mean(jax.lax.map(squared, directions)))


class MMD(NamedTuple):
    """Squared maximum mean discrepancy and the level-0.05 threshold under equal laws."""

    value: float
    threshold: float


def mmd(
    key: Array, x: Any, y: Any, *, rows: int = 1000, permutations: int = 200, level: float = 0.05
) -> MMD:
    """Return the unbiased squared MMD with a Gaussian kernel, and its permutation threshold.

    The bandwidth is the median distance of the pooled rows. ``value > threshold`` rejects equality
    at ``level``. At most ``rows`` rows of each set are used, drawn at random: O(rows^2 permutations).

    >>> x = jax.random.normal(jax.random.key(0), (200, 2))
    >>> value, threshold = mmd(jax.random.key(1), x, x + 3)
    >>> value > threshold
    True
    """
    x, y = _two_arrays(x, y)
    keys = jax.random.split(as_key(key), 3)
    m = min(rows, len(x), len(y))
    if m < 2:
        raise ValueError(f"x, y: expected at least 2 rows each, got {len(x)} and {len(y)}")
    x = x[jax.random.permutation(keys[0], len(x))[:m]]
    y = y[jax.random.permutation(keys[1], len(y))[:m]]
    both = jnp.concatenate([x, y])
    median = np.median(_squared_distances(both, both))  # NumPy selects, XLA would sort all
    values = np.asarray(_permuted_mmd(keys[2], both, jnp.asarray(median, x.dtype), permutations))
    return MMD(float(values[0]), float(np.quantile(values[1:], 1 - level)))


@partial(jax.jit, static_argnums=3)
def _permuted_mmd(key: Array, both: Array, median: Array, permutations: int) -> Array:
    gram = jnp.exp(-_squared_distances(both, both) / median)  # exp(-r^2 / (2 h^2))
    gram -= jnp.diag(jnp.diag(gram))
    m = len(both) // 2

    def value(sign: Array) -> Array:
        # sum over same-set pairs / (m (m-1)) - 2 * sum over cross pairs / m^2, by one product.
        total, signed = jnp.sum(gram), sign @ gram @ sign
        same, cross = (total + signed) / 2, (total - signed) / 4
        return same / (m * (m - 1)) - 2 * cross / m**2

    sign = jnp.repeat(jnp.array([1, -1], gram.dtype), m, total_repeat_length=2 * m)
    keys = jax.random.split(key, permutations)
    permuted = jax.lax.map(lambda k: value(jax.random.permutation(k, sign)), keys)
    return jnp.concatenate([value(sign)[None], permuted])


def energy_distance(x: Any, y: Any) -> float:
    """Return ``2 E|X-Y| - E|X-X'| - E|Y-Y'|`` (unbiased), O(n^2 d) time and O(n) memory.

    >>> energy_distance(jnp.zeros((5, 1)), jnp.ones((5, 1)))
    2.0
    """
    x, y = _two_arrays(x, y)
    across = _sum_of_distances(x, y) / (len(x) * len(y))
    within = sum(_sum_of_distances(a, a) / max(len(a) * (len(a) - 1), 1) for a in (x, y))
    return float(2 * across - within)


@jax.jit
def _sum_of_distances(x: Array, y: Array) -> Array:
    def one(row: Array) -> Array:
        return jnp.sum(jnp.sqrt(jnp.sum((y - row[None]) ** 2, 1)))

    return jnp.sum(jax.lax.map(one, x, batch_size=64))


def _squared_distances(x: Array, y: Array) -> Array:
    product = jnp.matmul(x, y.T, precision="highest")
    return jnp.maximum(jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None] - 2 * product, 0)


def column_kl(
    x: Any, y: Any, *, bandwidth: float = 0.2, points: int = 1000
) -> Float[np.ndarray, "d"]:
    """Return ``KL(x || y)`` of every column by kernel density estimates, as the paper reports.

    Both densities are SciPy's Gaussian KDE with bandwidth factor 0.2 on 1000 equal points over the
    range of ``x``, normalized on that grid.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> column_kl(x, x)
    array([0., 0.])
    """
    from scipy.stats import entropy, gaussian_kde

    x, y = (table.values for table in two_tables(x, y))
    out = np.zeros(x.shape[1])
    for j in range(x.shape[1]):
        grid = np.linspace(x[:, j].min(), x[:, j].max(), points)
        p, q = (gaussian_kde(a[:, j], bw_method=bandwidth)(grid) for a in (x, y))
        # Densities below float64's smallest number would make the divergence infinite.
        out[j] = entropy(p, np.maximum(q, np.finfo(float).tiny))
    return out


class Moments(NamedTuple):
    """Mean and standard deviation of every column."""

    mean: Float[np.ndarray, "d"]
    std: Float[np.ndarray, "d"]


def column_moments(x: Any) -> Moments:
    """Return the mean and standard deviation of every column, in float64.

    >>> column_moments(np.array([[1.0], [3.0]]))
    Moments(mean=array([2.]), std=array([1.]))
    """
    x = Table.of(x).values
    return Moments(x.mean(0), x.std(0))


class Memorization(NamedTuple):
    """Share of samples nearer to a training row than to any of as many held-out rows, and distances.

    A ``share`` of 0.5 means no copying, 1 means that every sample sits on a training row. Without
    copying, the share exceeds ``threshold`` with probability 0.05.
    """

    share: float
    train_distance: float
    heldout_distance: float
    threshold: float


def memorization(samples: Any, train: Any, heldout: Any) -> Memorization:
    """Return how much closer ``samples`` are to the training rows than to held-out ones.

    Both references are cut to one size (a larger set would be nearer by number alone), thinned evenly.
    Distances are medians to the nearest row. O(n m d) time. The threshold: without copying it is chance
    which half of all reference rows trained, and the share has the mean and variance of drawing half of
    the numbers of samples nearest to each row.

    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> memorization(x[:100], x[:100], x[100:200]).share
    1.0
    """
    first, second = two_tables(samples, train, ("samples", "train"))
    third = two_tables(first, heldout, ("samples", "heldout"))[1]
    samples, train, heldout = (on_device(table.values) for table in (first, second, third))
    size = min(len(train), len(heldout))
    kept = [np.asarray(a)[np.linspace(0, len(a) - 1, size).astype(int)] for a in (train, heldout)]
    (near, row), (far, other) = (map(np.asarray, _nearest(samples, a)) for a in kept)
    copied = np.where(near == far, 0.5, near < far)
    counts = np.concatenate([np.bincount(row, copied, size), np.bincount(other, 1 - copied, size)])
    deviation = np.sqrt(size / 2 * np.var(counts, ddof=1)) / len(samples)
    distances = float(np.median(near)), float(np.median(far))
    return Memorization(float(copied.mean()), *distances, float(0.5 + 1.645 * deviation))


@jax.jit
def _nearest(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the distance of every row of ``x`` to the nearest row of ``y``, and which that is."""

    def one(row: Array) -> tuple[Array, Array]:
        square = jnp.sum((y - row[None]) ** 2, 1)
        return jnp.sqrt(jnp.min(square)), jnp.argmin(square)

    return jax.lax.map(one, x, batch_size=64)


def classifier_accuracy(key: Array, x: Any, y: Any) -> float:
    """Return the held-out accuracy of a classifier that tells ``x`` from ``y``: 0.5 if it cannot.

    scikit-learn's histogram gradient boosting, equal sizes, trained on one half and scored on the
    other, the two halves swapped and averaged.

    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> classifier_accuracy(jax.random.key(0), x, x + 5) > 0.95
    True
    """
    with needed("the classifier", "scikit-learn", "data"):
        from sklearn.ensemble import HistGradientBoostingClassifier

    x, y = (table.values for table in two_tables(x, y))
    generator = host_generator(as_key(key))
    m = min(len(x), len(y))
    x, y = (a[generator.permutation(len(a))[:m]] for a in (x, y))
    rows = np.concatenate([x, y])
    labels = np.repeat([0, 1], m)
    half = generator.permutation(2 * m) % 2 == 0
    seed, accuracies = int(generator.integers(2**31)), []
    for fold in (half, ~half):
        model = HistGradientBoostingClassifier(random_state=seed).fit(rows[fold], labels[fold])
        accuracies.append(model.score(rows[~fold], labels[~fold]))
    return float(np.mean(accuracies))


def effective_sample_size(log_weights: Float[Array, "n"]) -> Float[Array, ""]:
    """Return ``(sum w)^2 / sum w^2`` of importance weights given by their logarithm; NaN counts as 0.

    >>> round(float(effective_sample_size(jnp.zeros(10))), 3)
    10.0
    """
    log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    return jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))


def __getattr__(name: str) -> Any:
    if name != "memorisation":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "metrics.memorisation is now metrics.memorization", DeprecationWarning, stacklevel=2
    )
    return memorization
