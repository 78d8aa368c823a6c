"""The scikit-learn facade: the library's own checks, pipelines, grid searches, weights."""

import unittest

import jax
import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import mcscore as mcs
from mcscore.sklearn import ScoreDensity, ScoreRegressor
from tests.conftest import X64

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(c, 0.6, (120, 2)) for c in (-2, 2)])
SINGLE = {  # what only float64 can hold: equality to 1e-7
    "check_methods_subset_invariance",
    "check_methods_sample_order_invariance",
    "check_sample_weight_equivalence_on_dense_data",
}
TIED = {  # its targets are three numbers, whose places are drawn anew for rows in another order
    ScoreDensity: (),
    ScoreRegressor: ("check_sample_weight_equivalence_on_dense_data",),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ScoreDensity, ScoreRegressor])
@pytest.mark.filterwarnings("ignore:condition. .* next to no data:UserWarning")
def test_scikit_learns_own_checks(kind):
    failed = []
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for estimator, check in estimator_checks_generator(kind(0.6)):
            name = getattr(check, "func", check).__name__
            if name in TIED[kind] or (not X64 and name in SINGLE):
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


def humps(n, seed=0):
    """Two humps at -c and c, c the one column that matters, and noise of 0.2."""
    r = np.random.default_rng(seed)
    c = r.uniform(1, 2, (n, 2))
    return c, r.choice([-1, 1], n) * c[:, 0] + 0.2 * r.normal(size=n)


@pytest.mark.once
def test_regression_of_a_gaussian_is_linear():
    r = np.random.default_rng(0)
    c = r.normal(size=(4000, 2))
    y = np.stack([1e3 + c @ [2.0, -1.0], c[:, 0]], 1) + r.normal(size=(4000, 2)) * [0.5, 2]
    model = ScoreRegressor(1.0, clusters=1).fit(c, y)
    solved = np.linalg.lstsq(np.c_[c, np.ones(4000)], y, rcond=None)[0]
    line = np.c_[c, np.ones(4000)] @ solved
    np.testing.assert_allclose(model.predict(c[:50]), line[:50], atol=0.02)
    one = ScoreRegressor(1.0, clusters=1).fit(c, y[:, 0])
    assert one.predict(c[:5]).shape == (5,) and one.score(c, y[:, 0]) > 0.94
    band = one.predict_quantile(c[:50], [0.025, 0.5, 0.975])
    np.testing.assert_allclose(band, line[:50, :1] + 0.5 * norm.ppf([0.025, 0.5, 0.975]), atol=0.05)
    expected = norm.logpdf(y[:50, 0], line[:50, 0], 0.5)
    np.testing.assert_allclose(one.log_prob(c[:50], y[:50, 0]), expected, atol=0.05)


@pytest.mark.once
@pytest.mark.parametrize("frame", ["affine", "gaussianize"])
def test_quantiles_and_draws_of_two_humps(frame):
    c, y = humps(6000)
    model = ScoreRegressor(0.4, clusters=8, partitions=2, frame=frame, random_state=0).fit(c, y)
    at = np.array([[1.2, 1.5], [1.8, 1.1]])
    levels = np.array([0.1, 0.25, 0.75, 0.9])
    spread = np.linspace(-4, 4, 4001)
    for place, found in zip(at, model.predict_quantile(at, levels), strict=True):
        density = np.exp(model.log_prob(np.tile(place, (4001, 1)), spread))
        share = np.cumsum(density) * (spread[1] - spread[0])
        np.testing.assert_allclose(np.interp(found, spread, share), levels, atol=0.01)
    draws = model.sample_y(at, 4000, random_state=0)
    assert draws.shape == (2, 4000)
    np.testing.assert_allclose(model.predict(at), draws.mean(1), atol=0.1)
    np.testing.assert_allclose(np.abs(draws).mean(1), at[:, 0], atol=0.05)
    together = model.predict_quantile(c[:70], 0.9)  # whatever else is asked
    apart = np.concatenate([model.predict_quantile(c[i : i + 7], 0.9) for i in range(0, 70, 7)])
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_regression_names_what_it_cannot_do():
    c, y = humps(200)
    model = ScoreRegressor(0.5).fit(c, np.stack([y, c[:, 0]], 1))
    with pytest.raises(ValueError, match="predict_quantile: expected one target, got 2"):
        model.predict_quantile(c[:2])
    with pytest.raises(ValueError, match=r"quantile: expected numbers between 0 and 1, got 1\.5"):
        ScoreRegressor(0.5).fit(c, y).predict_quantile(c[:2], 1.5)
    assert model.sample_y(c[:3], 4).shape == (3, 2, 4)
    with pytest.warns(UserWarning, match="condition: 1 of 1 lie where there is next to no data"):
        model.predict([[50.0, 50.0]])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.log_prob(c[:3], y[:4])


def test_targets_keep_their_digits_beside_columns_of_single_precision():
    c, y = humps(300)
    far = ScoreRegressor(0.5).fit(c.astype(np.float32), 1e9 + y)
    near = ScoreRegressor(0.5).fit(c, y)
    np.testing.assert_allclose(far.predict(c[:20]) - 1e9, near.predict(c[:20]), atol=1e-3)


def test_regression_knows_columns_and_the_ends_of_its_target():
    pandas = pytest.importorskip("pandas")
    c, y = humps(500)
    table = pandas.DataFrame(c, columns=["a", "b"])
    model = ScoreRegressor(0.5, clusters=4, bounds={0: (0, None)}).fit(table, np.abs(y))
    assert (model.predict_quantile(table[:20], 1e-4) >= 0).all()
    assert model.mixture_.condition_columns == ("a", "b")


def test_whole_weights_of_targets_are_repeated_rows():
    c, y = humps(300)
    weights = np.random.default_rng(1).integers(0, 4, 300)
    order = np.random.default_rng(2).permutation(weights.sum())
    rows = np.repeat(np.arange(300), weights)[order]
    one = ScoreRegressor(0.5, clusters=1).fit(c, y, sample_weight=weights)
    other = ScoreRegressor(0.5, clusters=1).fit(c[rows], y[rows])
    np.testing.assert_allclose(one.predict(c[:20]), other.predict(c[:20]), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        one.log_prob(c[:20], y[:20]), other.log_prob(c[:20], y[:20]), atol=0.01
    )
