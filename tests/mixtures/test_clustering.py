"""EM: against scikit-learn's, against its own theorems, and where components have nothing to hold."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mcscore as mcs
from mcscore.mixtures import clustering
from mcscore.mixtures.clustering import clusterings, log_joint
from mcscore.mixtures.covariances import ledoit_wolf
from tests.reference import equal_weights

KEY = jax.random.key(0)


def known(n, d=3, seed=0):
    """Return rows of five Gaussians well apart, standardized, and which they are of."""
    rng = np.random.default_rng(seed)
    means, which = 6 * rng.standard_normal((5, d)), rng.integers(5, size=n)
    roots = rng.standard_normal((5, d, d)) / np.sqrt(d)
    x = means[which] + np.einsum("nij,nj->ni", roots[which], rng.standard_normal((n, d)))
    return (x - x.mean(0)) / x.std(), which


def fit(x, number, weights=None, iterations=200, key=KEY):
    weights = equal_weights(x) if weights is None else weights / weights.sum()
    padded = clustering._padded(x, weights, 1 << len(x).bit_length())
    return clustering._fitted(
        key, *padded, number, min(p for p in clustering.PADDED if p >= number), iterations
    )


def mean_log_likelihood(x, model, weights=None):
    log_p = jax.nn.logsumexp(log_joint(jnp.asarray(x, jnp.float32), model), 1)
    return float(np.average(np.asarray(log_p, np.float64), weights=weights))


@pytest.mark.parametrize("number", [5, 12])
def test_em_is_as_likely_as_scikit_learns(number):
    from sklearn.mixture import GaussianMixture

    x, _ = known(3000)
    theirs = [
        GaussianMixture(number, reg_covar=1e-3, max_iter=200, tol=5e-3, random_state=s)
        .fit(x)
        .score(x)
        for s in range(4)
    ]
    ours = [mean_log_likelihood(x, fit(x, number, key=k)) for k in jax.random.split(KEY, 4)]
    assert max(ours) > max(theirs) - 0.02 and np.mean(ours) > np.mean(theirs) - 0.05


def test_a_fitted_component_is_the_moments_of_its_posterior():
    """At a fixed point the M-step changes nothing: checked with NumPy's float64."""
    x, _ = known(2000)
    model = jax.tree.map(lambda a: np.asarray(a, np.float64), fit(x, 5))
    joint = np.asarray(log_joint(jnp.asarray(x, jnp.float32), fit(x, 5)), np.float64)
    share = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    for j in np.flatnonzero(np.isfinite(model.log_weights)):
        p = share[:, j] / share[:, j].sum()
        mean = p @ x
        np.testing.assert_allclose(np.exp(model.log_weights[j]), share[:, j].mean(), atol=2e-3)
        np.testing.assert_allclose(model.means[j], mean, atol=5e-3)
        covariance = (p * (x - mean).T) @ (x - mean) + clustering.FLOOR * np.eye(3)
        root = model.roots[j]
        np.testing.assert_allclose(root.T @ covariance @ root, np.eye(3), atol=0.05)


def test_likelihood_never_falls():
    x, _ = known(1500, seed=3)
    found = [mean_log_likelihood(x, fit(x, 8, iterations=n)) for n in (1, 2, 4, 8, 16)]
    assert (np.diff(found) > -1e-3).all()  # the floor of the covariances is no maximum


def test_rows_of_weight_two_are_two_rows():
    """Of a start that both share: the same means, then the same sums."""
    x, _ = known(400)
    weights = np.random.default_rng(1).integers(1, 4, 400).astype(float)
    repeated = np.repeat(x, weights.astype(int), 0)
    start = fit(x, 5, iterations=1)
    models = []
    for rows, w in ((x, weights / weights.sum()), (repeated, equal_weights(repeated))):
        padded = clustering._padded(rows, w, 1 << len(rows).bit_length())
        models.append(clustering._continued(*padded, start, 10))
    for a, b in zip(*models, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_neither_padding_nor_chunks_show(monkeypatch):
    x, _ = known(1000)
    plain = fit(x, 4)
    jax.clear_caches()
    monkeypatch.setattr(clustering, "WORK", 2000)
    monkeypatch.setattr(clustering, "PADDED", (4,))
    for a, b in zip(plain, fit(x, 4), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    jax.clear_caches()


@pytest.mark.parametrize(("unit", "offset"), [(1.0, 1e6), (1e-20, 0.0), (1e20, 0.0)])
def test_units_and_offsets_do_not_matter(unit, offset):
    x, _ = known(1000)
    (found,) = clusterings([(unit * x + offset * unit, equal_weights(x), 5, KEY)])
    (plain,) = clusterings([(x, equal_weights(x), 5, KEY)])
    assert np.mean(found.labels == plain.labels) > 0.97


def test_as_many_clusters_as_rows_allow():
    x = np.random.default_rng(0).standard_normal((23, 2))
    (found,) = clusterings([(x, equal_weights(x), 50, KEY)])
    assert np.bincount(found.labels).max() <= 23 and (np.bincount(found.labels) != 1).all()
    same = np.ones((40, 2))
    (found,) = clusterings([(same, equal_weights(same), 3, KEY)])
    assert len(np.unique(found.labels)) >= 1 and len(found.labels) == 40


def test_shrinkage_is_ledoit_and_wolfs():
    from sklearn.covariance import ledoit_wolf_shrinkage

    rng = np.random.default_rng(0)
    for n, d in ((30, 4), (12, 20), (400, 3), (5, 2)):
        x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
        expected = ledoit_wolf_shrinkage(x, assume_centered=True)
        assert ledoit_wolf(x, equal_weights(x)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert ledoit_wolf(np.zeros((5, 2)), np.full(5, 0.2)) == 0


def test_few_programs_serve_all_numbers_of_clusters_and_rows(compiled):
    jax.clear_caches()
    for rows in (700, 1000):
        for number in (9, 11, 16):
            x, _ = known(rows)
            mcs.mixture(x, kernel=mcs.Local(0.5, number, partitions=2))
    assert compiled.count("jit(_fitted)") == compiled.count("jit(_labels)") == 1


@pytest.mark.once
def test_many_columns_side_by_side_end():
    """In threads that share a pool, batched LAPACK calls waited for each other for ever."""
    code = """
import jax, numpy as np
from mcscore.mixtures.clustering import clusterings
x = np.random.default_rng(1).standard_normal((3000, 43))
jobs = ((x, np.full(3000, 1 / 3000), 8, jax.random.key(k), None) for k in range(4))
assert [len(found.labels) for found in clusterings(jobs)] == [3000] * 4
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
