"""Clusters of rows: components of Gaussian mixtures fitted by EM (scikit-learn), several side by side.

A row's cluster is drawn from its posterior, not the likeliest: so the rows of a cluster are a sample of its
component, tails and overlaps included, and the clusters' Gaussians together are the mixture. Cut along the
borders of the likeliest, components would lose their tails.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np

FITTING_ROWS = 15_000  # rows that EM sees at most


class Clustering(NamedTuple):
    """The cluster of every row that was clustered, and a map from any rows to theirs."""

    labels: np.ndarray
    assign: Callable[[np.ndarray], np.ndarray]


def clusterings(jobs: Iterable[tuple[np.ndarray, int, int]]) -> list[Clustering]:
    """Return a clustering per job (rows, clusters, seed): components of a Gaussian mixture fitted by EM.

    Clusters that would hold fewer than five of the rows, too few for any covariance, are closed
    and their rows are drawn from the others.
    """
    jobs = list(jobs)
    if all(blocks == 1 for _, blocks, _ in jobs):
        return [Clustering(_one(x), _one) for x, *_ in jobs]
    try:
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ImportError("clustering needs scikit-learn: pip install mcscore[data]") from error

    # EM's matrices are small: one thread for each clustering is faster than all for one.
    with (
        warnings.catch_warnings(),  # nor need EM converge
        _thread_pools().limit(limits=1),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return list(pool.map(lambda job: _cluster(*job), jobs))


def _one(rows: np.ndarray) -> np.ndarray:
    return np.zeros(len(rows), int)


@cache
def _thread_pools() -> Any:
    """Return a controller of the BLAS libraries' threads; finding them takes milliseconds."""
    import sklearn.mixture  # loads them  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _cluster(x: np.ndarray, blocks: int, seed: int) -> Clustering:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.mixture import GaussianMixture

    # The mixture only proposes clusters: float32 does, in two thirds of the time.
    part = x[np.random.default_rng(seed).permutation(len(x))[:FITTING_ROWS]].astype(np.float32)
    blocks = min(blocks, max(1, len(part) // 5))
    options: Any = dict(n_init=1, random_state=seed)
    start = MiniBatchKMeans(blocks, **options).fit(part).cluster_centers_
    model = GaussianMixture(
        n_components=blocks,
        means_init=start,
        max_iter=30,
        tol=5e-3,
        reg_covar=1e-3,
        random_state=seed,
        init_params="random_from_data",
    ).fit(part)
    closed = np.zeros(blocks, bool)

    def assign(rows: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(seed)

        def drawn(chunk: np.ndarray) -> np.ndarray:
            posterior = model.predict_proba(chunk).astype(float)
            possible = np.maximum(posterior, 1e-300)  # may underflow
            cumulative = np.where(closed, 0.0, possible).cumsum(1)
            level = (1 - rng.random((len(chunk), 1))) * cumulative[:, -1:]  # above zero
            return (cumulative < level).sum(1)

        chunks = np.array_split(rows, -(-len(rows) // 50_000))
        return np.concatenate([drawn(chunk) for chunk in chunks])

    while True:
        labels = assign(x)
        counts = np.where(closed, len(x), np.bincount(labels, minlength=blocks))
        if counts.min() >= 5 or closed.sum() == blocks - 1:
            return Clustering(labels, assign)
        closed[counts.argmin()] = True
