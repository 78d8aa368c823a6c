"""Clusters, their covariances, and what is stored of them."""

import jax
import numpy as np
import pytest

import mcscore as mcs
from mcscore.mixtures.clustering import clusterings
from mcscore.mixtures.covariances import clustered_blocks, shrunk_clusters
from mcscore.mixtures.layout import block_size, equal_share
from tests.mixtures.test_kernels import KERNELS, KEY, LAWS, components
from tests.reference import equal_weights, two_clusters

PRESERVING = [
    name for name in KERNELS if "preserving" in name or name in ("local", "local, partitions")
]


@pytest.mark.parametrize("name", PRESERVING)
def test_covariance_is_kept(name):
    x = two_clusters()
    means, weights, covariances = components(LAWS[name])
    centered = means - weights @ means
    total = (weights * centered.T) @ centered + np.einsum("i,ijk->jk", weights, covariances)
    np.testing.assert_allclose(total, np.cov(x.T, bias=True), atol=1e-5)
    np.testing.assert_allclose(weights @ means, x.mean(0), atol=1e-5)


def test_every_clusters_covariance_is_kept():
    x = two_clusters()
    labels = [(x[:, 0] > 0).astype(int)]
    weights = np.full(400, 1 / 400)
    blocks = clustered_blocks(KEY, x, weights, shrunk_clusters(x, weights, labels), 0.7, 50)
    for side in (x[:, 0] <= 0, x[:, 0] > 0):
        own = [
            k
            for k in range(len(blocks.centers))
            if (blocks.centers[k, 0] > 0) == (x[side][0, 0] > 0)
        ]
        rows = np.concatenate(
            [
                (blocks.rows[k] @ blocks.bases[k].T + blocks.centers[k])[
                    np.isfinite(blocks.log_weights[k])
                ]
                for k in own
            ]
        )
        kernel = (blocks.bases[own[0]] * blocks.variances[own[0]]) @ blocks.bases[own[0]].T
        np.testing.assert_allclose(
            np.cov(rows.T, bias=True) + kernel, np.cov(x[side].T, bias=True), atol=1e-5
        )


@pytest.mark.parametrize("name", [name for name in KERNELS if "fewer" not in name])
def test_draws_have_the_law_s_covariance(name, key):
    law = LAWS[name]
    points, weights, covariances = components(law)
    centered = points - weights @ points
    expected = (weights * centered.T) @ centered + np.einsum("n,nij->ij", weights, covariances)
    found = np.cov(np.asarray(law.sample(key, 100_000), np.float64).T)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    block = np.asarray(mcs.jet.draw(key, jax.tree.map(lambda a: a[:1], law.blocks), 50_000))
    inside = np.s_[: law.blocks.rows.shape[1]]  # one block alone: its own basis decides
    share = np.exp(np.asarray(law.blocks.log_weights[0], np.float64))
    rows = np.asarray(law.points()[0], np.float64)[inside][share > 0]
    share = share[share > 0] / share.sum()
    centered = rows - share @ rows
    expected = (share * centered.T) @ centered + covariances[0]
    np.testing.assert_allclose(np.cov(block.T), expected, atol=0.03 * np.abs(expected).max())


def test_rows_of_a_closed_cluster_go_to_open_ones():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((200, 2)), rng.standard_normal((3, 2)) / 100 + 1e4])
    for found in clusterings(
        (x, equal_weights(x), 2, k) for k in jax.random.split(KEY, 10)
    ):  # whichever is closed, 0 or 1
        assert len(np.unique(found.labels)) == 1  # far off, every open posterior underflows


def test_clusters_share_what_may_be_stored():
    sizes = np.array([10, 500, 80, 2000])
    for total in (100, 400, 1000, 2589):
        most = equal_share(sizes, total)
        assert np.minimum(sizes, most).sum() <= total < np.minimum(sizes, most + 1).sum()
    assert equal_share(sizes, 10_000) == 2000
    law = mcs.mixture(two_clusters(), kernel=mcs.Local(0.5, 3, 4, most_rows=200))
    assert np.isfinite(law.blocks.log_weights).sum() <= 200
    np.testing.assert_allclose(np.exp(law.blocks.log_weights).sum(), 1, rtol=1e-5)


def test_padding_stays_small():
    rng = np.random.default_rng(0)
    for sizes in (
        rng.integers(5, 400, 100),
        rng.pareto(1.0, 200).astype(int) * 20 + 5,
        np.array([7, 100_000]),
    ):
        rows = block_size(sizes, 1024)
        counts = -(-sizes // rows)
        stored = counts.sum() * (-(-sizes // counts)).max()
        assert 1 - sizes.sum() / stored < 0.15
