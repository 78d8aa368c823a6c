"""The scikit-learn facade: the library's own checks, pipelines, grid searches, weights."""

import unittest

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import mcscore as mcs
from mcscore.sklearn import ScoreDensity
from tests.conftest import X64

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(c, 0.6, (120, 2)) for c in (-2, 2)])
SINGLE = {  # what only float64 can hold: equality to 1e-7
    "check_methods_subset_invariance",
    "check_methods_sample_order_invariance",
    "check_sample_weight_equivalence_on_dense_data",
}


@pytest.mark.slow
def test_scikit_learns_own_checks():
    failed = []
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for estimator, check in estimator_checks_generator(ScoreDensity(0.6)):
            name = getattr(check, "func", check).__name__
            if not X64 and name in SINGLE:
                continue
            try:
                check(estimator)
            except unittest.SkipTest:
                continue
            except Exception as error:
                if "TypeCheckError" in repr(error):  # annotations are checked in tests only
                    continue
                failed.append((name, repr(error)[:200]))
    assert not failed, failed


def test_is_the_mixture():
    model = ScoreDensity(0.6, clusters=2, partitions=1, random_state=0).fit(X)
    law = model.mixture_
    np.testing.assert_allclose(model.score_samples(X), law.log_prob(X))
    assert model.score(X) == pytest.approx(float(law.log_prob(X).sum()), rel=1e-5)
    draws = model.sample(4000, random_state=1)
    np.testing.assert_array_equal(draws, model.sample(4000, random_state=1))
    np.testing.assert_allclose(np.cov(draws.T), np.cov(X.T), rtol=0.1)


def test_scotts_rule_by_name():
    clusters = int(np.sqrt(len(X) / X.shape[1]))
    h = (len(X) / clusters) ** (-1 / (X.shape[1] + 4))
    one, other = (
        ScoreDensity(bandwidth, clusters=blocks, random_state=0).fit(X)
        for bandwidth, blocks in (("scott", None), (h, clusters))
    )
    np.testing.assert_allclose(one.score_samples(X), other.score_samples(X), rtol=1e-5)


def test_grid_search_in_a_pipeline_prefers_a_reasonable_bandwidth():
    pipe = make_pipeline(StandardScaler(), ScoreDensity(0.5, clusters=2, random_state=0))
    search = GridSearchCV(pipe, {"scoredensity__bandwidth": [0.02, 0.7]}, cv=3).fit(X)
    assert search.best_params_ == {"scoredensity__bandwidth": 0.7}
    assert np.isfinite(search.score(X))


def test_weights_count():
    weights = np.where(X[:, 0] < 0, 3.0, 1.0)
    draws = ScoreDensity(0.6, clusters=2).fit(X, sample_weight=weights).sample(4000, random_state=0)
    assert np.mean(draws[:, 0] < 0) == pytest.approx(0.75, abs=0.03)


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="frame: expected one of"):
        ScoreDensity(0.5, frame="polar").fit(X)
    with pytest.raises(ValueError, match="bandwidth: expected a number or 'scott', got 'silver'"):
        ScoreDensity("silver").fit(X)
    with pytest.raises(ValueError, match="h: expected at most 1"):
        ScoreDensity(2.0).fit(X)
    assert clone(ScoreDensity(0.3, clusters=4)).get_params()["clusters"] == 4
    assert mcs.__all__.count("ScoreDensity") == 0  # import mcscore stays light
