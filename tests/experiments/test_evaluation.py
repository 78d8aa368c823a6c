"""What samples are judged by, and when one is better."""

import jax
import numpy as np
import pytest

from mcscore import metrics
from mcscore.experiments import comparison, evaluation

KEY = jax.random.key(0)


def test_better_is_nearer_to_the_ideal_by_more_than_noise():
    def best(error=0.01, **values):
        ((key, pair),) = values.items()
        errors = error if isinstance(error, tuple) else (error, error)
        metrics = [
            {key: v, f"{key}_error": e, "mmd_threshold": 0.01, "memorization_threshold": 0.52}
            for v, e in zip(pair, errors, strict=True)
        ]
        named = zip(comparison.COLUMNS, metrics, strict=True)
        results = {c: dict(metrics=m, seconds={}) for c, m in named}
        lines = comparison.table(results | {"floor": {"metrics": {"std_error_threshold": 0.2}}})
        names = {metric.key: metric.name for metric in comparison.METRICS}
        return next(line.best for line in lines if line.name == names[key])

    for metric in comparison.METRICS[:6]:
        assert best(**{metric.key: (2.0, 1.0)}) == "mcscore"
        assert best(**{metric.key: (1.0, 2.0)}) == "published"
        assert best(**{metric.key: (1.027, 1.0)}) is None  # 2 sqrt(2) errors are 0.028
        assert best(**{metric.key: (1.029, 1.0)}) == "mcscore"
        assert best(error=(0.01, 9.0), **{metric.key: (1.0, 1.1)}) == "published"
    assert best(mmd=(0.02, 0.001), error=0.0) == "mcscore"
    assert best(mmd=(0.009, 0.001), error=0.0) is None  # equal laws show as much
    assert best(mmd=(0.011, 0.001), error=0.0) == "mcscore"
    assert best(std_error=(0.19, 0.01), error=0.0) is None
    assert best(std_error=(0.01, 0.21), error=0.0) == "published"
    assert best(classifier=(0.6, 0.49)) == "mcscore" and best(classifier=(0.4, 0.5)) is None
    assert best(law_log_likelihood=(-2.0, -1.0)) == "mcscore"
    assert (
        best(memorization=(0.7, 0.56)) == "mcscore" and best(memorization=(0.56, 0.4)) == "mcscore"
    )
    assert best(memorization=(0.5, 0.519)) is None
    assert best(label_classifier=(0.88, 0.52)) == "mcscore"
    assert comparison._best({"mcscore": 1.0}) is None


@pytest.mark.slow
def test_equal_laws_exceed_chance_in_one_of_twenty_comparisons():
    rng, exceeded = np.random.default_rng(0), []
    for _ in range(20):
        train, test, fresh = (rng.standard_t(6, size=(n, 2)) for n in (450, 50, 150))
        limits = evaluation.chance(KEY, train, test, times=40)
        found = evaluation._moments_and_distance(KEY, fresh / train.std(0), test / train.std(0))
        exceeded.append([found[name] > limits[f"{name}_threshold"] for name in found])
    assert np.shape(exceeded) == (20, 5)
    assert (np.sum(exceeded, 0) <= 5).all()  # binomial(20, 0.05) with probability 0.9997


def test_metrics_are_of_all_draws_or_means_over_sets(problem):
    rng = np.random.default_rng(0)
    test = np.asarray(problem.test, float)
    samples = test[rng.integers(len(test), size=4 * len(test) + 7)]
    samples[3] = np.nan
    found = evaluation.judge(KEY, samples, problem.train, test)
    kept = np.delete(samples, 3, 0)[: 4 * len(test)]
    scale = np.asarray(problem.train, float).std(0)
    parts = np.array_split(kept, 4)
    each = [np.abs((part.mean(0) - test.mean(0)) / scale).max() for part in parts]
    assert (found["sets"], found["rows"], found["nonfinite"]) == (4, len(test), 1)
    every = np.delete(samples, 3, 0)
    whole = np.abs((every.mean(0) - test.mean(0)) / scale).max()
    assert found["mean_error"] == pytest.approx(whole, rel=1e-6)
    assert found["mean_error_error"] == pytest.approx(np.std(each, ddof=1) / 2, rel=1e-6)
    off = np.linalg.norm(every.std(0) / test.std(0) - 1) / 3**0.5
    assert found["std_rms"] == pytest.approx(off, rel=1e-6)
    kl = [metrics.column_kl(test / scale, part / scale).mean() for part in parts]
    assert found["column_kl"] == pytest.approx(np.mean(kl), rel=1e-6)
    assert found["column_kl"] == pytest.approx(np.mean(found["columns"]["kl"]))
    assert "mmd" in found and "mmd" not in evaluation.judge(
        KEY, every, problem.train, test, mmd_rows=0
    )
    assert "classifier_error" not in evaluation.judge(KEY, samples[4:10], problem.train, test)
