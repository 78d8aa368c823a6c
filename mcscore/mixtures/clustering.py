"""Clusters of rows: components of Gaussian mixtures fitted by EM (scikit-learn), several side by side.

A row's cluster is drawn from its posterior, not the likeliest: so the rows of a cluster are a sample of its
component, tails and overlaps included, and the clusters' Gaussians together are the mixture. Cut along the
borders of the likeliest, components would lose their tails.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator
from mcscore._optional import needed

FITTING_ROWS = 15_000  # rows on which EM starts, at most
ENDING_ROWS = 60_000  # of larger tables, rows on which it ends


class Clustering(NamedTuple):
    """The cluster of every row that was clustered, and a map from any rows to theirs."""

    labels: np.ndarray
    assign: Callable[[np.ndarray], np.ndarray]


def clusterings(
    jobs: Iterable[tuple[np.ndarray, int, Array]], *, thorough: bool = True
) -> list[Clustering]:
    """Return a clustering per job (rows, clusters, key): components of a Gaussian mixture fitted by EM.

    Clusters that would hold fewer than five of the rows, too few for any covariance, are closed
    and their rows are drawn from the others. Of large tables EM ends on more rows if ``thorough``.
    """
    jobs = list(jobs)
    if all(clusters == 1 for _, clusters, _ in jobs):
        return [Clustering(_one(x), _one) for x, *_ in jobs]
    with needed("clustering (Auto, Local)", "scikit-learn", "data"):
        from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # EM need not converge
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _side_by_side(lambda job: _cluster(*job, thorough=thorough), jobs)


def assignments(found: Sequence[Clustering], rows: np.ndarray) -> list[np.ndarray]:
    """Return the clusters of ``rows`` in each of the clusterings, ``found`` among rows like them."""
    return _side_by_side(lambda one: one.assign(rows), found)


def _side_by_side(function: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """Return ``function(job)`` of all jobs: EM's matrices are small, so one thread is enough for each."""
    with _thread_pools().limit(limits=1), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, jobs))


def _one(rows: np.ndarray) -> np.ndarray:
    return np.zeros(len(rows), int)


@cache
def _thread_pools() -> Any:
    """Return a controller of the BLAS libraries' threads; finding them takes milliseconds."""
    importlib.import_module("sklearn.mixture")  # loads them
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _cluster(x: np.ndarray, clusters: int, key: Array, *, thorough: bool) -> Clustering:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.mixture import GaussianMixture

    # The mixture only proposes clusters: float32 does, in half the time.
    order_key, model_key, row_key = jax.random.split(key, 3)
    order, whole = host_generator(order_key).permutation(len(x)), len(x) <= FITTING_ROWS
    seed = int(host_generator(model_key).integers(2**31))
    part = x[order[:FITTING_ROWS]].astype(np.float32)
    clusters = min(clusters, max(1, len(part) // 5))
    options: Any = dict(n_init=1, random_state=seed)
    start = MiniBatchKMeans(clusters, **options).fit(part).cluster_centers_
    model = GaussianMixture(
        n_components=clusters,
        means_init=start,
        max_iter=30 if whole else 20,
        tol=5e-3,
        reg_covar=1e-3,
        random_state=seed,
        init_params="random_from_data",
        warm_start=True,
    ).fit(part)
    if thorough and not whole:  # a few iterations on more rows do as well as all of them
        model.set_params(max_iter=5).fit(x[order[:ENDING_ROWS]].astype(np.float32))
    closed = np.zeros(clusters, bool)

    def drawn(rows: np.ndarray, u: np.ndarray) -> np.ndarray:
        posterior = model.predict_proba(rows.astype(np.float32)).astype(float)
        possible = np.maximum(posterior, 1e-300)  # may underflow
        cumulative = np.where(closed, 0.0, possible).cumsum(1)
        return (cumulative < (1 - u[:, None]) * cumulative[:, -1:]).sum(1)  # level above zero

    def uniform(size: int) -> np.ndarray:  # of every row always the same
        return host_generator(row_key).random(size)

    def assign(rows: np.ndarray) -> np.ndarray:
        u, chunks = uniform(len(rows)), -(-len(rows) // 50_000)
        parts = zip(np.array_split(rows, chunks), np.array_split(u, chunks), strict=True)
        return np.concatenate([drawn(*part) for part in parts])

    labels, u = assign(x), uniform(len(x))
    while True:
        counts = np.bincount(labels, minlength=clusters)
        closed[:] = counts == 0
        fewest = np.where(closed, len(x), counts).argmin()
        if counts[fewest] >= 5 or closed.sum() == clusters - 1:
            return Clustering(labels, assign)
        closed[fewest], left = True, labels == fewest
        labels[left] = drawn(x[left], u[left])
