r"""Clusters of rows: components of Gaussian mixtures fitted by EM, several side by side.

With the responsibilities ``r_ij`` of component j for row i, the posterior, EM repeats

    E    log r_ij = log w_j N(x_i; mu_j, C_j) - log-sum-exp over j
    M    w_j, mu_j, C_j = mass, mean and covariance of the rows, weighted by p_i r_ij

(Dempster, Laird and Rubin 1977), both as matrix products over chunks of rows, so that memory stays bounded.
It starts from k-means++ (Arthur and Vassilvitskii 2007) and a few steps of k-means.

A row's cluster is drawn from its posterior, not the likeliest: so the rows of a cluster are a sample of its
component, tails and overlaps included, and the clusters' Gaussians together are the mixture. Cut along the
borders of the likeliest, components would lose their tails. The mixture only proposes clusters, whose moments
are taken anew in float64: float32 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import host_generator, on_device, rung, side_by_side
from mcscore.jet.dense import product

FITTING_ROWS = 15_000  # rows on which EM starts, at most
ENDING_ROWS = 60_000  # of larger tables, rows on which it ends
FLOOR = 1e-3  # of the columns' mean variance, added to every component's
TOLERANCE = 5e-3  # nats per row: EM that gains less ends; it need not converge
PADDED = (4, 8, 16, 40, 80, 160)  # components, closed ones included: few programs serve all numbers
WORK = 2**20  # numbers of a chunk's whitened rows: they stay in the cache
LABELED = 2**14  # rows whose clusters are drawn together


class Clustering(NamedTuple):
    """The cluster of every row that was clustered, and a map from any rows and their strata to theirs."""

    labels: np.ndarray
    assign: Callable[..., np.ndarray]


class Components(NamedTuple):
    """Gaussian components; of a closed one the log weight is ``-inf``.

    Attributes:
        log_weights: (k,).
        means: (k, d).
        roots: ``U`` with ``U U^T`` the inverse covariance, (k, d, d).
    """

    log_weights: Array
    means: Array
    roots: Array


Job = tuple[Any, ...]  # rows, their weights, number of clusters, key, and strata, if any


def clusterings(jobs: Iterable[Job], *, thorough: bool = True) -> list[Clustering]:
    """Return a clustering per job (rows, their weights, number of clusters, key, strata or None).

    Clusters that would hold fewer than five of the rows, too few for any covariance, are closed
    and their rows are drawn from the others. Of large tables EM ends on more rows if ``thorough``.
    Strata, numbered from 0, are clustered one by one, each into its share of clusters, one at least.
    """
    return side_by_side(lambda job: _cluster(*job, thorough=thorough), jobs)


def _by_stratum(
    x: np.ndarray, weights: np.ndarray, number: int, key: Array, strata: np.ndarray, thorough: bool
) -> Clustering:
    found, starts = [], [0]
    for stratum, own in enumerate(jax.random.split(key, strata.max() + 1)):
        rows = strata == stratum  # there may be none in this part of a table
        share = max(1, round(number * weights[rows].sum() / weights.sum()))
        found.append(_cluster(x[rows], weights[rows], share, own, thorough=thorough))
        starts.append(starts[-1] + share)

    def joined(parts: Iterable[np.ndarray], strata: np.ndarray) -> np.ndarray:
        labels = np.zeros(len(strata), int)
        for stratum, part in enumerate(parts):
            labels[strata == stratum] = starts[stratum] + part
        return labels

    def drawn(rows: np.ndarray, strata: np.ndarray) -> np.ndarray:
        return joined((one.assign(rows[strata == s]) for s, one in enumerate(found)), strata)

    return Clustering(joined((one.labels for one in found), strata), drawn)


def _cluster(
    x: np.ndarray,
    weights: np.ndarray,
    number: int,
    key: Array,
    strata: np.ndarray | None = None,
    *,
    thorough: bool,
) -> Clustering:
    if strata is not None:
        return _by_stratum(x, weights, number, key, strata, thorough)
    if number == 1:
        return Clustering(_one(x), _one)
    order_key, em_key, row_key = jax.random.split(key, 3)
    order, whole = host_generator(order_key).permutation(len(x)), len(x) <= FITTING_ROWS
    number = min(number, max(1, min(len(x), FITTING_ROWS) // 5))
    shift = weights @ x / weights.sum()
    scale = max(float(np.sqrt(np.mean(weights @ (x - shift) ** 2) / weights.sum())), 1e-300)

    def scaled(rows: np.ndarray) -> np.ndarray:
        return (rows - shift) / scale

    def part(most: int) -> tuple[Array, Array]:
        rows = order[:most]
        some = weights[rows] / weights[rows].sum()
        return _padded(scaled(x[rows]), some, max(1024, rung(len(rows))))

    components = min((padded for padded in PADDED if padded >= number), default=number)
    model = _fitted(em_key, *part(FITTING_ROWS), number, components, 30 if whole else 20)
    if thorough and not whole:  # a few iterations on more rows do as well as all of them
        model = _continued(*part(ENDING_ROWS), model, 5)
    is_open = np.isfinite(np.asarray(model.log_weights))

    def drawn(rows: np.ndarray, _: Any = None) -> np.ndarray:
        u = 1 - host_generator(row_key).random(len(rows))  # of a row always the same; never zero
        chunks = [slice(i, i + LABELED) for i in range(0, len(rows), LABELED)]
        given = on_device(is_open.astype(np.float32), np.float32)
        # Powers of two: few programs.
        sizes = [max(1024, 1 << (len(u[c]) - 1).bit_length()) for c in chunks]
        found = [
            _labels(*_padded(scaled(rows[c]), u[c], size), model, given)
            for c, size in zip(chunks, sizes, strict=True)
        ]
        return np.concatenate(
            [np.asarray(f)[: len(u[c])] for f, c in zip(found, chunks, strict=True)]
        )

    labels = drawn(x)
    while True:
        counts = np.bincount(labels, minlength=components)
        is_open &= counts > 0
        fewest = np.where(is_open, counts, len(x) + 1).argmin()
        if counts[fewest] >= 5 or is_open.sum() == 1:
            return Clustering(labels, drawn)
        is_open[fewest] = False
        labels = np.where(labels == fewest, drawn(x), labels)


def _one(rows: np.ndarray, _: Any = None) -> np.ndarray:
    return np.zeros(len(rows), int)


def _padded(rows: np.ndarray, numbers: np.ndarray, size: int) -> tuple[Array, Array]:
    """Return rows (n, d) and a number for each, by zeros lengthened to a ``size``."""
    more = size - len(rows)
    return on_device((np.pad(rows, ((0, more), (0, 0))), np.pad(numbers, (0, more))), np.float32)


# --- EM ------------------------------------------------------------------------------------------


def log_joint(x: Float[Array, "n d"], model: Components) -> Float[Array, "n k"]:
    """Return ``log w_j N(x_i; mu_j, C_j)``."""
    k, d = model.means.shape
    whiten = jnp.swapaxes(model.roots, 0, 1).reshape(d, k * d)  # one product for all components
    shift = jnp.einsum("kd,kde->ke", model.means, model.roots, precision="highest")
    z = product(x, whiten).reshape(len(x), k, d) - shift[None]
    log_det = jnp.sum(jnp.log(jnp.diagonal(model.roots, axis1=1, axis2=2)), 1)
    constant = model.log_weights + log_det - d / 2 * float(np.log(2 * np.pi))
    return constant[None] - jnp.sum(z**2, -1) / 2


@partial(jax.jit, static_argnums=(4, 5))
def _fitted(
    key: Array, x: Array, weights: Array, number: Any, components: int, iterations: int
) -> Components:
    """Return a ``number`` of components, closed ones beside them, after so many iterations at most."""
    k, d = components, x.shape[1]
    means = _plus_plus(key, x, weights, k)
    weight = jnp.where(jnp.arange(k) < number, 0.0, -jnp.inf).astype(x.dtype)
    model = Components(weight, means, jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), (k, d, d)))
    chunks = _chunks(x, weights, k)

    def nearest(x: Array, weights: Array, model: Components) -> tuple[Array, Array]:
        joint = log_joint(x, model._replace(log_weights=weight))  # roots are still the identity
        one_hot = jax.nn.one_hot(jnp.argmax(joint, 1), k, dtype=x.dtype)
        return one_hot * weights[:, None], jnp.zeros((), x.dtype)

    def step(model: Components, _: None) -> tuple[Components, None]:
        return model._replace(
            means=_maximized(_moments(nearest, chunks, model)[0], model).means
        ), None

    model = jax.lax.scan(step, model, length=4)[0]
    return _iterated(_maximized(_moments(nearest, chunks, model)[0], model), chunks, iterations)


@partial(jax.jit, static_argnums=3)
def _continued(x: Array, weights: Array, model: Components, iterations: int) -> Components:
    """Return the components after more iterations, on other rows."""
    return _iterated(model, _chunks(x, weights, len(model.means)), iterations)


def _plus_plus(key: Array, x: Array, weights: Array, k: int) -> Array:
    """Return ``k`` rows, each drawn by its weight times its squared distance to those before."""
    first, others = jax.random.split(key)

    def pick(key: Array, mass: Array) -> Array:
        total = jnp.cumsum(mass)
        at = jnp.searchsorted(total, jax.random.uniform(key, dtype=x.dtype) * total[-1])
        return x[jnp.minimum(at, len(x) - 1)]

    def distance(row: Array) -> Array:
        return jnp.sum((x - row[None]) ** 2, 1)

    def step(nearest: Array, key: Array) -> tuple[Array, Array]:
        row = pick(key, weights * nearest)
        return jnp.minimum(nearest, distance(row)), row

    start = pick(first, weights)
    rows = jax.lax.scan(step, distance(start), jax.random.split(others, k - 1))[1]
    return jnp.concatenate([start[None], rows])


def _chunks(x: Array, weights: Array, k: int) -> tuple[Array, Array]:
    """Return the rows in chunks (c, m, d) and their weights (c, m), padded by rows of no weight."""
    n, d = x.shape
    count = -(-n // max(256, WORK // (k * d)))
    more = -n % count
    x, weights = jnp.pad(x, ((0, more), (0, 0))), jnp.pad(weights, (0, more))
    return x.reshape(count, -1, d), weights.reshape(count, -1)


def _moments(
    responsibilities: Callable[[Array, Array, Components], tuple[Array, Array]],
    chunks: tuple[Array, Array],
    model: Components,
) -> tuple[Array, Array]:
    """Return sums of ``1, x, x x^T`` by responsibility, (k, 1 + d + d^2), and the log-likelihood."""

    def step(sums: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple, None]:
        x, weights = chunk
        shares, log_likelihood = responsibilities(x, weights, model)
        parts = [product(shares.T, jnp.concatenate([jnp.ones_like(x[:, :1]), x], 1))]
        if k < d:  # the smaller of two intermediate results
            parts.append(product(_outer(shares, x).T, x).reshape(k, -1))
        else:
            parts.append(product(shares.T, _outer(x, x)))
        return (sums[0] + jnp.concatenate(parts, 1), sums[1] + log_likelihood), None

    k, d = model.means.shape
    zero = jnp.zeros((k, 1 + d + d**2), model.means.dtype), jnp.zeros((), model.means.dtype)
    return jax.lax.scan(step, zero, chunks)[0]


def _outer(a: Array, b: Array) -> Array:
    """Return every row's products of all of ``a`` with all of ``b``."""
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _posterior(x: Array, weights: Array, model: Components) -> tuple[Array, Array]:
    joint = log_joint(x, model)
    log_p = jax.nn.logsumexp(joint, 1)
    return jnp.exp(joint - log_p[:, None]) * weights[:, None], weights @ log_p


def _maximized(sums: Array, model: Components) -> Components:
    """Return the components with the moments; one without rows is closed, an ill one stays as it was."""
    k, d = model.means.shape
    mass, eye = sums[:, 0], jnp.eye(d, dtype=sums.dtype)
    moments = sums[:, 1:] / jnp.maximum(mass, jnp.finfo(mass.dtype).tiny)[:, None]
    means = moments[:, :d]
    covariances = moments[:, d:].reshape(k, d, d) - means[:, :, None] * means[:, None, :]

    def inverse_root(covariance: Array) -> Array:
        factor = jnp.linalg.cholesky(covariance + FLOOR * eye)
        return jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)

    # One by one: over a batch jaxlib's LAPACK calls share a pool of threads, in which two programs side by
    # side can wait for each other for ever (jaxlib 0.10.2, from about 8 matrices of 43 columns on).
    inverses = jax.lax.map(inverse_root, covariances)
    well = (mass > 0) & jnp.isfinite(inverses).all((1, 2))
    return Components(
        jnp.log(mass),
        jnp.where(well[:, None], means, model.means),
        jnp.where(well[:, None, None], jnp.swapaxes(inverses, 1, 2), model.roots),
    )


def _iterated(model: Components, chunks: tuple[Array, Array], iterations: int) -> Components:
    def step(state: tuple) -> tuple:
        model, _, before, count = state
        sums, log_likelihood = _moments(_posterior, chunks, model)
        return _maximized(sums, model), before, log_likelihood, count + 1

    def going(state: tuple) -> Array:
        _, before, now, count = state
        return (count < iterations) & (jnp.abs(now - before) > TOLERANCE)

    start = (jnp.asarray(value, model.means.dtype) for value in (-np.inf, -1e30))
    return jax.lax.while_loop(going, step, (model, *start, jnp.asarray(0)))[0]


@jax.jit
def _labels(x: Array, u: Array, model: Components, is_open: Array) -> Array:
    """Return a cluster for every row, the open component at level ``u``, in (0, 1], of its posterior."""
    k = len(model.means)
    up_to = jnp.triu(jnp.ones((k, k), x.dtype))

    def part(given: tuple[Array, Array]) -> Array:
        x, u = given
        joint = jnp.where(is_open[None] > 0, log_joint(x, model), -jnp.inf)
        shares = jnp.exp(joint - jnp.max(joint, 1, keepdims=True))
        level = product(shares, up_to)  # their sums so far
        return jnp.sum(level < u[:, None] * level[:, -1:], 1)

    n, d = x.shape
    rows = min(n, max(256, 1 << (WORK // (k * d)).bit_length() - 1))  # powers of two, as n is
    return jax.lax.map(part, (x.reshape(-1, rows, d), u.reshape(-1, rows))).reshape(n)
