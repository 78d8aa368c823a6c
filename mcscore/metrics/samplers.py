"""What samplers are judged by: copies, a classifier, importance weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import host_generator, on_device
from mcscore._optional import needed
from mcscore._validation import as_key, two_tables


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
    center = second.weights @ second.values
    unit = float(np.sqrt(np.mean((second.values - center) ** 2))) or 1.0
    samples, train, heldout = (
        on_device((table.values - center) / unit) for table in (first, second, third)
    )
    size = min(len(train), len(heldout))
    kept = [np.asarray(a)[np.linspace(0, len(a) - 1, size).astype(int)] for a in (train, heldout)]
    (near, row), (far, other) = (map(np.asarray, _nearest(samples, a)) for a in kept)
    copied = np.where(near == far, 0.5, near < far)
    counts = np.concatenate([np.bincount(row, copied, size), np.bincount(other, 1 - copied, size)])
    deviation = np.sqrt(size / 2 * np.var(counts, ddof=1)) / len(samples)
    distances = unit * float(np.median(near)), unit * float(np.median(far))
    return Memorization(float(copied.mean()), *distances, float(0.5 + 1.645 * deviation))


@jax.jit
def _nearest(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the distance of every row of ``x`` to the nearest row of ``y``, and which that is."""

    def one(row: Array) -> tuple[Array, Array]:
        square = jnp.sum((y - row[None]) ** 2, 1)
        return jnp.sqrt(jnp.min(square)), jnp.argmin(square)

    return jax.lax.map(one, x, batch_size=64)


def classifier_accuracy(
    key: Array, x: Any, y: Any, *, x_weights: Any = None, y_weights: Any = None
) -> float:
    """Return the held-out accuracy of a classifier that tells ``x`` from ``y``: 0.5 if it cannot.

    scikit-learn's histogram gradient boosting, equal sizes, trained on one half and scored on the
    other, the two halves swapped and averaged.

    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> classifier_accuracy(jax.random.key(0), x, x + 5) > 0.95
    True
    """
    with needed("the classifier", "scikit-learn", "data"):
        from sklearn.ensemble import HistGradientBoostingClassifier

    tables = two_tables(x, y, weights=(x_weights, y_weights))
    generator = host_generator(as_key(key))
    m = min(map(len, tables))
    orders = [generator.permutation(len(table))[:m] for table in tables]
    rows = np.concatenate([t.values[o] for t, o in zip(tables, orders, strict=True)])
    share = [t.weights[o] / t.weights[o].sum() for t, o in zip(tables, orders, strict=True)]
    weights = m * np.concatenate(share)
    equal = np.ptp(weights) == 0  # scikit-learn's bins of weighted rows take ten times as long
    labels = np.repeat([0, 1], m)
    half = generator.permutation(2 * m) % 2 == 0
    seed, accuracies = int(generator.integers(2**31)), []
    for fold in (half, ~half):
        model = HistGradientBoostingClassifier(random_state=seed)
        model.fit(rows[fold], labels[fold], None if equal else weights[fold])
        accuracies.append(model.score(rows[~fold], labels[~fold], weights[~fold]))
    return float(np.mean(accuracies))


def effective_sample_size(log_weights: Float[Array, "n"]) -> Float[Array, ""]:
    """Return ``(sum w)^2 / sum w^2`` of importance weights given by their logarithm; NaN counts as 0.

    >>> round(float(effective_sample_size(jnp.zeros(10))), 3)
    10.0
    """
    log_weights = jnp.where(jnp.isfinite(log_weights), log_weights, -jnp.inf)
    total, squares = jax.nn.logsumexp(log_weights), jax.nn.logsumexp(2 * log_weights)
    return jnp.where(jnp.isneginf(total), 0, jnp.exp(2 * total - squares))
