"""How draws are judged against held-out rows, and what equal laws would show by chance."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mcscore import metrics

ROWS = 10_000  # of the test rows, at most, and of each set of samples compared with them
SETS = 5  # of samples: means over them, and standard errors


def judge(
    samples: np.ndarray, train: np.ndarray, test: np.ndarray, *, mmd: bool = True
) -> dict[str, Any]:
    """Return every metric of samples against test rows, columns standardised by the training rows.

    Moments and sliced Wasserstein of all samples; the other metrics need sets of as many rows as the test
    has: their means over up to five such sets. Standard errors over the sets (``*_error``): of moments and
    distance an upper bound, where the sets do not use up all samples.
    """
    train, test, samples = (np.asarray(a, np.float64) for a in (train, test, samples))
    shift, scale = train.mean(0), train.std(0)
    finite = np.isfinite(samples).all(1)
    train, y, x = ((a - shift) / scale for a in (train, test[:ROWS], samples[finite]))
    count = min(SETS, max(1, len(x) // len(y)))
    sets = np.array_split(x[: count * len(y)], count)
    kl = np.array([metrics.column_kl(y, part) for part in sets])
    judged = [_judge_set(seed, part, train, y, mmd) for seed, part in enumerate(sets)]
    values = {name: [one[name] for one in judged] for name in judged[0]}
    values |= dict(column_kl=kl.mean(1).tolist())
    out: dict[str, Any] = {name: float(np.mean(value)) for name, value in values.items()}
    if count > 1:
        errors = {f"{k}_error": np.std(v, ddof=1) / count**0.5 for k, v in values.items()}
        out |= {name: float(error) for name, error in errors.items()}
    out |= _moments_and_distance(x, y)
    found, true = metrics.column_moments(samples[finite]), metrics.column_moments(test)
    return out | dict(
        nonfinite=int((~finite).sum()),
        rows=len(sets[0]),
        sets=count,
        columns=dict(
            kl=kl.mean(0).tolist(), mean=found.mean.tolist(), std=found.std.tolist(),
            test_mean=true.mean.tolist(), test_std=true.std.tolist(),
        ),
    )  # fmt: skip


def _judge_set(
    seed: int, x: np.ndarray, train: np.ndarray, y: np.ndarray, mmd: bool
) -> dict[str, float]:
    """Return the metrics of one set of samples, all standardised."""
    nearer, found = metrics.memorisation(x, train, y), _moments_and_distance(x, y)
    if mmd:
        value, threshold = metrics.mmd(jax.random.key(seed), x, y, rows=4000, permutations=100)
        found |= dict(mmd=value, mmd_threshold=threshold)
    return found | dict(
        classifier=metrics.classifier_accuracy(seed, x, y),
        memorisation=nearer.share,
        memorisation_threshold=nearer.threshold,
    )


def _moments_and_distance(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    mean, std = np.abs(x.mean(0) - y.mean(0)), np.abs(x.std(0) / y.std(0) - 1)
    return dict(
        mean_rms=float(np.sqrt(np.mean(mean**2))),
        mean_error=float(mean.max()),
        std_rms=float(np.sqrt(np.mean(std**2))),
        std_error=float(std.max()),
        sliced_wasserstein=metrics.sliced_wasserstein(jax.random.key(0), x, y),
    )


def chance(train: np.ndarray, test: np.ndarray, times: int = 60) -> dict[str, float]:
    """Return the thresholds that some metrics of equal laws exceed in one of twenty comparisons.

    Quantiles over ``times`` random draws from training and test rows: as many as the test has (or half of
    all) against up to three times as many others, columns standardised by the training rows.
    """
    train, test = (np.asarray(a, np.float64) for a in (train, test))
    both = np.concatenate([train, test[:ROWS]]) / train.std(0)
    size, rng, found = min(len(test[:ROWS]), len(both) // 2), np.random.default_rng(0), []
    for _ in range(times):
        order = rng.permutation(len(both))
        found.append(_moments_and_distance(both[order[:size]], both[order[size : 4 * size]]))
    return {
        f"{name}_threshold": float(np.quantile([one[name] for one in found], 0.95))
        for name in found[0]
    }
