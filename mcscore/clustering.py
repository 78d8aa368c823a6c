"""Clusters of rows: components of Gaussian mixtures fitted by EM (scikit-learn), several side by side."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

FITTING_ROWS = 15_000  # rows that EM sees at most


def clusterings(
    x: np.ndarray, blocks: int, seeds: Iterable[int]
) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Return one map from rows to clusters per seed: components of a Gaussian mixture fitted by EM.

    Clusters that would hold fewer than five rows of ``x``, too few for any covariance, are closed
    and their rows go to the next likeliest.
    """
    if blocks == 1:
        return [lambda rows: np.zeros(len(rows), int) for _ in seeds]
    try:
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise ImportError("clustering needs scikit-learn: pip install mcscore[data]") from error

    # EM's matrices are small: one thread for each clustering is faster than all for one.
    with (
        warnings.catch_warnings(),  # the mixture only proposes clusters: EM need not converge
        threadpool_limits(1),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return list(pool.map(partial(_cluster, x, blocks), seeds))


def _cluster(x: np.ndarray, blocks: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.mixture import GaussianMixture

    part = x[np.random.default_rng(seed).permutation(len(x))[:FITTING_ROWS]]
    blocks = min(blocks, max(1, len(part) // 5))
    options: Any = dict(n_init=1, random_state=seed)
    start = MiniBatchKMeans(blocks, **options).fit(part).cluster_centers_
    model = GaussianMixture(
        n_components=blocks,
        means_init=start,
        max_iter=30,
        tol=2e-3,
        reg_covar=1e-3,
        random_state=seed,
        init_params="random_from_data",
    ).fit(part)
    closed = np.zeros(blocks, bool)

    def assign(rows: np.ndarray) -> np.ndarray:
        chunks = np.array_split(rows, -(-len(rows) // 50_000))
        posteriors = (np.where(closed, -1.0, model.predict_proba(chunk)) for chunk in chunks)
        return np.concatenate([posterior.argmax(1) for posterior in posteriors])

    while True:
        counts = np.where(closed, len(x), np.bincount(assign(x), minlength=blocks))
        if counts.min() >= 5 or closed.sum() == blocks - 1:
            return assign
        closed[counts.argmin()] = True
