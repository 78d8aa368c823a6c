"""How draws are judged against held-out rows, and what equal laws would show by chance."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mcscore import metrics
from mcscore._arrays import host_generator

ROWS = 10_000  # of the test rows, at most, and of each set of samples compared with them
SETS = 5  # of samples: means over them, and standard errors


def judge(
    key: Array,
    samples: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    sets: int = SETS,
    mmd_rows: int = 4000,
) -> dict[str, Any]:
    """Return every metric of samples against test rows, columns standardized by the training rows.

    Moments and sliced Wasserstein of all samples; the other metrics need sets of as many rows as the test
    has: their means over up to so many such ``sets``, MMD of ``mmd_rows`` (none: 0). Standard errors over
    the sets (``*_error``): of moments and distance an upper bound, where the sets do not use up all samples.
    """
    train, test, samples = (np.asarray(a, np.float64) for a in (train, test, samples))
    shift, scale = train.mean(0), train.std(0)
    finite = np.isfinite(samples).all(1)
    train, y, x = ((a - shift) / scale for a in (train, test[:ROWS], samples[finite]))
    count = min(sets, max(1, len(x) // len(y)))
    parts = np.array_split(x[: count * len(y)], count)
    kl = np.array([metrics.column_kl(y, part) for part in parts])
    whole_key, *keys = jax.random.split(key, count + 1)
    judged = [_judge_set(k, part, train, y, mmd_rows) for k, part in zip(keys, parts, strict=True)]
    values = {name: [one[name] for one in judged] for name in judged[0]}
    values |= dict(column_kl=kl.mean(1).tolist())
    out: dict[str, Any] = {name: float(np.mean(value)) for name, value in values.items()}
    if count > 1:
        errors = {f"{k}_error": np.std(v, ddof=1) / count**0.5 for k, v in values.items()}
        out |= {name: float(error) for name, error in errors.items()}
    out |= _moments_and_distance(whole_key, x, y)
    found, true = metrics.column_moments(samples[finite]), metrics.column_moments(test)
    return out | dict(
        nonfinite=int((~finite).sum()),
        rows=len(parts[0]),
        sets=count,
        columns=dict(
            kl=kl.mean(0).tolist(), mean=found.mean.tolist(), std=found.std.tolist(),
            test_mean=true.mean.tolist(), test_std=true.std.tolist(),
        ),
    )  # fmt: skip


def _judge_set(
    key: Array, x: np.ndarray, train: np.ndarray, y: np.ndarray, mmd_rows: int
) -> dict[str, float]:
    """Return the metrics of one set of samples, all standardized."""
    distance_key, mmd_key, classifier_key = jax.random.split(key, 3)
    nearer, found = metrics.memorization(x, train, y), _moments_and_distance(distance_key, x, y)
    if mmd_rows:
        value, threshold = metrics.mmd(mmd_key, x, y, rows=mmd_rows, permutations=100)
        found |= dict(mmd=value, mmd_threshold=threshold)
    return found | dict(
        classifier=metrics.classifier_accuracy(classifier_key, x, y),
        memorization=nearer.share,
        memorization_threshold=nearer.threshold,
    )


def _moments_and_distance(key: Array, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    mean, std = np.abs(x.mean(0) - y.mean(0)), np.abs(x.std(0) / y.std(0) - 1)
    return dict(
        mean_rms=float(np.sqrt(np.mean(mean**2))),
        mean_error=float(mean.max()),
        std_rms=float(np.sqrt(np.mean(std**2))),
        std_error=float(std.max()),
        sliced_wasserstein=metrics.sliced_wasserstein(key, x, y),
    )


def chance(key: Array, train: np.ndarray, test: np.ndarray, times: int = 60) -> dict[str, float]:
    """Return the thresholds that some metrics of equal laws exceed in one of twenty comparisons.

    Quantiles over ``times`` random draws from training and test rows: as many as the test has (or half of
    all) against up to three times as many others, columns standardized by the training rows.
    """
    train, test = (np.asarray(a, np.float64) for a in (train, test))
    both = np.concatenate([train, test[:ROWS]]) / train.std(0)
    size, found = min(len(test[:ROWS]), len(both) // 2), []
    order_key, distance_key = jax.random.split(key)
    generator = host_generator(order_key)
    for k in jax.random.split(distance_key, times):
        order = generator.permutation(len(both))
        found.append(_moments_and_distance(k, both[order[:size]], both[order[size : 4 * size]]))
    return {
        f"{name}_threshold": float(np.quantile([one[name] for one in found], 0.95))
        for name in found[0]
    }
