"""Marginal and conditional laws: closed forms, the product rule, and draws against draws."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import mcscore as mcs
from mcscore.jet import conditioning
from mcscore.jet.sampling import draw

RNG = np.random.default_rng(0)
KERNELS = {
    "isotropic": mcs.Isotropic(0.4),
    "whitened": mcs.Whitened(0.4, preserve=True),
    "local": mcs.Local(0.6, clusters=3, partitions=2),
}
FRAMES = {
    "identity": mcs.Identity(),
    "whitened": mcs.Affine(whiten=True),
    "Gaussianized": mcs.Gaussianize(),
}


def skewed(n=500):
    """Return rows of four dependent columns in units far apart, one of them skewed."""
    y = RNG.standard_normal((n, 4)) @ RNG.standard_normal((4, 4))
    y[:, 1] = np.exp(y[:, 1] / 3) + y[:, 0]
    return y * [1.0, 0.5, 3.0, 2.0] + [5.0, 0.0, -20.0, 1.0]


X = skewed()


LAWS = [("isotropic", "identity"), ("whitened", "whitened"), *(("local", f) for f in FRAMES)]


def test_tails_are_those_of_draws_and_keep_their_precision(key):
    law = mcs.mixture(X, kernel=mcs.Local(0.5, 4), frame=mcs.Affine())
    onto, points = RNG.standard_normal((4, 3)), RNG.uniform(-3, 3, (10, 3))
    mass = np.asarray(conditioning.tails(law.blocks, *map(jnp.asarray, (onto, points))))
    drawn = np.asarray(draw(key, law.blocks, 200_000)) @ onto
    beyond = np.sign(points) * (drawn[:, None] - points) > 0
    np.testing.assert_allclose(mass, beyond.mean(0), atol=5 * 0.5 / 200_000**0.5)
    one = mcs.mixture(np.zeros((2, 1)), kernel=mcs.Isotropic(1.0)).blocks
    far = conditioning.tails(one, jnp.eye(1), jnp.array([[-8.0], [8.0]]))
    np.testing.assert_allclose(far, norm.cdf(-8.0) * np.ones((2, 1)), rtol=1e-5)


@pytest.fixture(scope="module", params=LAWS, ids="-".join)
def law(request):
    kernel, frame = request.param
    return mcs.mixture(X, kernel=KERNELS[kernel], frame=FRAMES[frame])


@pytest.mark.parametrize("columns", [[1], [3, 0], [2, 1, 0]])
def test_product_rule(law, columns, tol):
    rest = [j for j in range(4) if j not in columns]
    rows = X[::50] + 0.1
    joint = np.asarray(law.log_prob(rows))
    first = np.asarray(law.marginal(columns).log_prob(rows[:, columns]))
    second = [law.condition(columns, row[columns]).log_prob(row[None, rest])[0] for row in rows]
    np.testing.assert_allclose(first + np.asarray(second), joint, atol=tol(1e-9, 5e-4))


def test_a_single_gaussian_has_the_regression_line(key, tol):
    covariance = np.array([[2.0, 0.6, -0.8], [0.6, 1.0, 0.3], [-0.8, 0.3, 1.5]])
    x = RNG.multivariate_normal([1, 2, 3], covariance, 400)
    law = mcs.mixture(x, kernel=mcs.Local(1.0, clusters=1, partitions=1), frame=mcs.Affine())
    mean, c = x.mean(0), np.cov(x.T, bias=True)
    law_c = np.cov(np.asarray(law.points()[0]).T)  # h = 1: all rows lie at the mean
    assert np.abs(law_c).max() < 1e-6
    given, a, b = np.array([2.5]), [0, 2], [1]
    gain = c[np.ix_(a, b)] @ np.linalg.inv(c[np.ix_(b, b)])
    expected = mean[a] + gain @ (given - mean[b])
    part = law.condition(b, given)
    drawn = np.asarray(part.sample(key, 100_000), np.float64)
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), c[np.ix_(a, a)] - gain @ c[np.ix_(b, a)], atol=0.05)
    # and exactly, from the density: log p at the mean is that of a Gaussian
    schur = c[np.ix_(a, a)] - gain @ c[np.ix_(b, a)]
    peak = -np.linalg.slogdet(2 * np.pi * schur)[1] / 2
    np.testing.assert_allclose(part.log_prob(expected[None])[0], peak, rtol=tol(1e-9, 1e-4))


@pytest.mark.slow
def test_marginal_draws_are_columns_of_the_joint_draws(key):
    law, columns = mcs.mixture(X, kernel=KERNELS["local"], frame=mcs.Gaussianize()), [3, 1]
    joint = np.asarray(law.sample(key, 20_000))[:, columns]
    part = np.asarray(law.marginal(columns).sample(jax.random.key(1), 20_000))
    scale = joint.std(0)
    assert mcs.metrics.sliced_wasserstein(key, joint / scale, part / scale) < 0.03


@pytest.mark.slow
def test_conditional_draws_are_the_joint_draws_nearby(key):
    law = mcs.mixture(X, kernel=KERNELS["local"], frame=mcs.Gaussianize())
    joint = np.asarray(law.sample(key, 400_000))
    middle, width = np.median(X[:, 0]), 0.03 * X[:, 0].std()
    near = joint[np.abs(joint[:, 0] - middle) < width][:, 1:]
    drawn = np.asarray(law.condition([0], [middle]).sample(jax.random.key(1), len(near)))
    scale = X.std(0)[1:]
    assert len(near) > 3000
    assert mcs.metrics.sliced_wasserstein(key, near / scale, drawn / scale) < 0.06
    assert mcs.metrics.sliced_wasserstein(key, joint[: len(near), 1:] / scale, drawn / scale) > 0.2


@pytest.mark.slow
def test_conditions_side_by_side(key, tol):
    law = mcs.mixture(X, kernel=KERNELS["local"], frame=mcs.Gaussianize())
    values, rest = jnp.asarray(X[:5, [2]], law.dtype), jnp.asarray(X[:5, [0, 1, 3]], law.dtype)
    together = jax.vmap(lambda c, x: law.condition([2], c).log_prob(x[None])[0])(values, rest)
    alone = [law.condition([2], c).log_prob(x[None])[0] for c, x in zip(values, rest, strict=True)]
    np.testing.assert_allclose(together, np.asarray(alone), atol=tol(1e-9, 1e-3))
    slope = jax.grad(lambda c: law.condition([2], c).log_prob(rest[:1])[0])(values[0])
    step = tol(1e-5, 1e-2)
    up, down = (law.condition([2], values[0] + s).log_prob(rest[:1])[0] for s in (step, -step))
    np.testing.assert_allclose(slope[0], (up - down) / (2 * step), rtol=tol(1e-5, 0.05))


@pytest.mark.slow
def test_a_conditional_law_can_be_labeled_and_learned(key):
    law = mcs.mixture(X, kernel=KERNELS["local"], frame=mcs.Gaussianize()).condition([0], X[0, :1])
    y = draw(key, law.blocks, 4000)
    assert np.abs(np.asarray(y)).max() < 20  # coordinates of the order of one
    z = mcs.encode(y, law, mcs.Cosine())
    assert (
        np.abs(np.asarray(z).mean(0)).max() < 0.08 and np.abs(np.asarray(z).std(0) - 1).max() < 0.08
    )
    pairs = mcs.generate_pairs(key, law, mcs.Cosine(), n=200, error_sample=50)
    assert pairs.report.error_median < 1e-3
    generator, _ = mcs.train(key, pairs, network=mcs.MLP(width=8, depth=1), epochs=2)
    assert generator.sample(key, 10).shape == (10, 3)


def test_far_conditions_stay_finite(law):
    far = X.mean(0)[:2] + 1e3 * X.std(0)[:2]
    part = law.condition([0, 1], far)
    np.testing.assert_allclose(np.exp(np.asarray(part.points()[1])).sum(), 1, rtol=1e-4)
    assert np.isfinite(np.asarray(part.sample(jax.random.key(0), 100))).all()


def test_ties_of_the_other_columns_are_restored(key):
    x = np.stack([X[:, 0], np.round(X[:, 0] + RNG.standard_normal(len(X))), X[:, 2]], 1)
    law = mcs.mixture(x, kernel=KERNELS["local"], frame=mcs.Gaussianize())
    drawn = np.asarray(law.condition([0], x[0, :1]).sample(key, 500))
    np.testing.assert_array_equal(drawn[:, 0], np.round(drawn[:, 0]))
    assert len(np.unique(drawn[:, 1])) > 400
    drawn = np.asarray(law.condition([1], [5.0]).sample(key, 500))
    assert abs(np.median(drawn[:, 0]) - np.median(x[x[:, 1] == 5, 0])) < 0.5


def test_a_transformed_law_has_no_report(key):
    """What was measured of one law holds neither for another nor for what ``jit`` returns."""
    law = mcs.mixture(X[:100], kernel=KERNELS["isotropic"])
    other = mcs.mixture(X[100:200], kernel=KERNELS["isotropic"])
    assert law.report.rows == 100 and law.report != replace(law.report, rows=7)
    same = jax.jit(lambda law: law)
    derived = [law.condition([1], X[0, 1:2]), law.marginal([0]), law.subsample(key, 5)]
    derived += [same(law), same(other), jax.tree.map(lambda a: a, law)]
    assert [law.report for law in derived] == [None] * 6


@pytest.mark.parametrize(
    ("columns", "values", "named"),
    [
        ([], [], "columns: expected distinct indices from 0 to 3"),
        ([0, 0], [1.0, 1.0], "columns: expected distinct"),
        ([4], [1.0], r"got \[4\]"),
        ([-1], [1.0], r"got \[-1\]"),
        ([0, 1, 2, 3], [0.0] * 4, "to leave some"),
        ([0, 1], [1.0], r"values: expected shape \(2,\), got \(1,\)"),
        ([0], [np.nan], "values: expected finite"),
    ],
)
def test_bad_conditions_are_named(columns, values, named):
    law = mcs.mixture(X, kernel=mcs.Isotropic(0.5))
    with pytest.raises(ValueError, match=named):
        law.condition(columns, values)


def test_point_masses_have_no_conditional_law():
    law = mcs.mixture(X)
    with pytest.raises(ValueError, match=r"condition.*Dirac"):
        law.condition([0], [1.0])
    points = np.asarray(law.marginal([2, 0]).points()[0])
    assert len(points) >= len(X)
