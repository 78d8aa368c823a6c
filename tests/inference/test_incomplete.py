"""Laws of rows with holes against closed forms, and what cannot be learned from."""

from functools import partial

import numpy as np
import pytest

import mcscore as mcs

ONE = mcs.Local(1.0, clusters=1, partitions=1)


def incomplete(n, seed=0):
    """Return correlated normal rows whose second entry is missing where the first is large, and the whole."""
    r = np.random.default_rng(seed)
    x = r.standard_normal((n, 2)) @ [[1, 0.8], [0, 0.6]]
    holes = x.copy()
    holes[(x[:, 0] > 0.3) & (r.random(n) < 0.9), 1] = np.nan
    return holes, x


def test_rows_with_holes_take_part(key):
    holes, _ = incomplete(4000)
    law = mcs.inference.mixture_of_incomplete(key, holes, kernel=ONE, frame=mcs.Affine())
    drawn = np.asarray(law.sample(key, 40_000), np.float64)
    assert np.nanmean(holes[:, 1]) < -0.3
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(drawn.T), [[1, 0.8], [0.8, 1]], atol=0.08)


@pytest.mark.once
def test_rows_with_holes_where_none_is_complete(key):
    """Pairs of three columns are seen, never all three: correlations come back, as far as pairs tell them."""
    r = np.random.default_rng(1)
    covariance = np.array([[1, 0.7, 0.5], [0.7, 1, 0.6], [0.5, 0.6, 1]])
    x = r.multivariate_normal([0, 0, 0], covariance, 6000)
    x[np.arange(6000), r.integers(0, 3, 6000)] = np.nan
    learn = mcs.inference.mixture_of_incomplete
    law = learn(key, x, kernel=ONE, frame=mcs.Affine(), rounds=12)
    drawn = np.asarray(law.sample(key, 40_000), np.float64)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.1)


def test_names_weights_and_groups_of_rows_with_holes(key):
    pd = pytest.importorskip("pandas")
    holes, _ = incomplete(300)
    learn = mcs.inference.mixture_of_incomplete
    frame = pd.DataFrame(holes, columns=["a", "b"])
    rows = dict(weights=np.r_[np.zeros(100), np.ones(200)], groups=np.arange(300) // 3)
    law = learn(key, frame, kernel=ONE, frame=mcs.Affine(), rounds=1, **rows)
    assert law.columns == ("a", "b")
    masked = np.ma.masked_invalid(holes)
    one, other = (learn(key, x, kernel=ONE, frame=mcs.Affine(), rounds=2) for x in (holes, masked))
    np.testing.assert_array_equal(one.sample(key, 5), other.sample(key, 5))
    whole = np.nan_to_num(holes)
    same = mcs.mixture(whole, kernel=ONE, frame=mcs.Affine())
    np.testing.assert_allclose(
        learn(key, whole, kernel=ONE, frame=mcs.Affine()).log_prob(whole[:5]),
        same.log_prob(whole[:5]),
        atol=0.02,  # zeros are ties, and placed by another key
    )


def test_holes_that_cannot_be_learned_from(key):
    holes, _ = incomplete(50)
    learn = partial(mcs.inference.mixture_of_incomplete, key, kernel=ONE, frame=mcs.Affine())
    for j, axis in ((3, "row"), (1, "column")):
        broken = holes.copy()
        broken[(j, slice(None)) if axis == "row" else (slice(None), j)] = np.nan
        with pytest.raises(ValueError, match=f"in every {axis}, got none in {axis} {j}"):
            learn(broken)
    with pytest.raises(
        ValueError, match="rows: expected numbers or NaN, got inf in column 1, row 0"
    ):
        learn(np.concatenate([[[0.0, np.inf]], holes]))
    with pytest.raises(ValueError, match="condition: expected None"):
        learn(holes, condition=[0])
    with pytest.raises(ValueError, match=r"weights: expected shape \(50,\), got \(3,\)"):
        learn(holes, weights=[1, 2, 3])
    with pytest.raises(ValueError, match="rounds"):
        learn(holes, rounds=0)


@pytest.mark.once
def test_few_rows_are_complete_and_columns_depend_on_each_other(key):
    """Nine of 150 rows: draws of each column by itself would take many rounds to be forgotten."""
    r = np.random.default_rng(0)
    x = r.multivariate_normal(np.zeros(6), 0.9 + 0.1 * np.eye(6), 150)
    gone = r.random(x.shape) < 0.35
    gone[gone.all(1), 0] = False
    x[gone] = np.nan
    kernel = mcs.Whitened(0.3, preserve=True)
    law = mcs.inference.mixture_of_incomplete(key, x, kernel=kernel)
    found = np.corrcoef(np.asarray(law.sample(key, 20_000)).T)[np.triu_indices(6, 1)]
    np.testing.assert_allclose(found.mean(), 0.9, atol=0.05)


def test_rows_of_no_weight_are_not_looked_at(key):
    holes, _ = incomplete(200)
    weights = np.ones(203)
    weights[200:] = 0
    more = np.concatenate([holes, [[np.nan, np.nan], [np.inf, 0], [1e9, np.nan]]])
    learn = partial(mcs.inference.mixture_of_incomplete, key, kernel=ONE, frame=mcs.Affine())
    one, other = learn(holes, weights=np.ones(200)), learn(more, weights=weights)
    np.testing.assert_array_equal(one.sample(key, 5), other.sample(key, 5))


@pytest.mark.once
def test_integers_and_ends_are_kept(key):
    r = np.random.default_rng(2)
    x = np.stack([r.poisson(4, 800), r.exponential(1, 800)], 1).astype(float)
    x[r.random((800, 2)) < 0.2] = np.nan
    x = x[~np.isnan(x).all(1)]
    kernel = mcs.Local(0.5, clusters=3, partitions=1)
    law = mcs.inference.mixture_of_incomplete(key, x, kernel=kernel, bounds={1: (0, None)})
    drawn = np.asarray(law.sample(key, 2000))
    assert (drawn[:, 0] == np.round(drawn[:, 0])).all() and (drawn[:, 1] >= 0).all()


def test_what_is_no_number(key):
    pd = pytest.importorskip("pandas")
    dates = pd.DataFrame({"day": pd.to_datetime(["2020-01-01"] * 30), "b": np.arange(30.0)})
    words = pd.DataFrame({"word": ["x"] * 30, "b": [np.nan, *np.arange(29.0)]})
    learn = partial(mcs.inference.mixture_of_incomplete, key, kernel=ONE)
    law = mcs.mixture(np.random.default_rng(0).normal(size=(50, 2)), kernel=ONE)
    for rows, message in (
        (dates, "got dates in column 'day'"),
        (words, "expected a table of numbers"),
    ):
        for use in (learn, lambda x: mcs.inference.impute(key, law, x)):
            with pytest.raises(ValueError, match=message):
                use(rows)
    with pytest.raises(ValueError, match="expected real numbers"):
        learn(np.ones((30, 2)) + 1j)
    with pytest.raises(ValueError, match="kernel: expected one with a density"):
        mcs.inference.mixture_of_incomplete(key, np.eye(3), kernel=mcs.Dirac())
