r"""Kernels: which Gaussian each datum carries, so that the data law is ``sum_i w_i N(m_i, C)``.

| kernel                          | C                 | law                                        |
|---------------------------------|-------------------|--------------------------------------------|
| `Dirac()`                       | 0                 | the empirical measure (arXiv 2310.14458)   |
| `Isotropic(h)`                  | h^2 I             | kernel density estimate                    |
| `Whitened(h)`                   | h^2 Cov(x)        | the same in whitened coordinates           |
| `Local(h, blocks, partitions)`  | h^2 Cov(cluster)  | one covariance per cluster of rows         |

A kernel may pull rows towards the mean of their cluster, ``m_i = mu + A (x_i - mu)``, with ``A`` such
that ``A S A' + C = S``: rows and kernel together keep the cluster's covariance ``S`` exactly, wherever
the kernel is not wider than the cluster. `Local` always does, up to the sampling of rows that it leaves
out: ``h -> 0`` is the data, ``h = 1`` a Gaussian mixture. Its independent partitions of the same rows stand
side by side; their laws average.

A kernel is a frozen value; ``kernel.lay_out(x, weights, rows)`` arranges the data for the streaming
evaluation of ``jet``. It runs once per mixture, on the host, in float64. ``Auto`` (in ``selection``)
chooses among them by held-out likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from mcscore.clustering import clusterings
from mcscore.jet import Blocks
from mcscore.packing import balanced_blocks, bisect, block_size, equal_share, pack

MOST_ROWS = 1_000_000  # rows stored at most
BLURRED = 0.002  # nats by which a cluster's law may change where its rows are thinned
Number = Any  # a float to the user, a tracer under jit


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels."""

    def lay_out(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return ``x`` (n, d) in blocks of at most ``rows`` rows, arrays in float64.

        ``weights`` (n,) are positive and sum to one.
        """
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dirac(Kernel):
    """The empirical measure, as in the paper. Its flow needs a schedule with ``sigma(0) > 0``.

    >>> Dirac()
    Dirac()
    """

    def lay_out(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return balanced blocks with zero variance."""
        return balanced_blocks(x, weights, rows, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Isotropic(Kernel):
    """A Gaussian of standard deviation ``h`` around every datum: a kernel density estimate.

    Args:
        h: Bandwidth, in the units of the mixture's coordinates. Positive; 0 is ``Dirac()``.
        preserve: Pull the rows towards their mean so that the law keeps the data's covariance.

    >>> Isotropic(0.1)
    Isotropic(h=0.1, preserve=False)
    """

    h: Number
    preserve: bool = field(default=False, metadata={"static": True})

    def lay_out(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return balanced blocks with variance ``h^2``."""
        _check_bandwidth(self.h)
        if self.preserve:
            centre = weights @ x
            centred = x - centre
            covariance = (weights * centred.T) @ centred
            pull = _pull(*_relative(self.h**2 * np.eye(x.shape[1]), covariance))
            x = centre + centred @ pull.T
        return balanced_blocks(x, weights, rows, self.h**2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whitened(Kernel):
    """``h`` times the data's own standard deviation in every direction.

    Args:
        h: Bandwidth relative to the data's covariance.
        preserve: Pull the rows towards their mean so that the law keeps the data's covariance.

    >>> Whitened(0.3)
    Whitened(h=0.3, preserve=False)
    """

    h: Number
    preserve: bool = field(default=False, metadata={"static": True})

    def lay_out(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return blocks of neighbouring rows that share one basis and its variances."""
        _check_bandwidth(self.h)
        labels = [np.zeros(len(x), int)]
        clusters = shrunk_clusters(x, weights, labels)
        return clustered_blocks(x, weights, clusters, self.h, rows, self.preserve)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Local(Kernel):
    """``h`` times the standard deviations of the datum's own cluster, whose covariance is kept.

    Clusters come from a Gaussian mixture fitted by EM (scikit-learn) to at most 60,000 rows, started
    from MiniBatchKMeans; every row's is drawn from its posterior. Covariances of small clusters are shrunk
    (Ledoit-Wolf).

    Args:
        h: Share of each cluster's spread that is kernel, in ``(0, 1]``: towards 0 the law copies the
            data, 1 is a Gaussian mixture.
        blocks: Clusters per partition; by default ``sqrt(n / d)``, where `Auto` starts to search.
        partitions: Independent clusterings whose laws are averaged.
        most_rows: Rows stored over all partitions, at most. Beyond, each cluster keeps a sample of its
            own rows, of equal size for all and with the cluster's whole mass and shape: the law costs
            that much less to evaluate, for a little likelihood. So it does where a wide kernel blurs
            the rows: as many are kept as give a Gaussian cluster's law within about 0.002 nats.
        seed: Of the clusterings.

    >>> Local(0.5, blocks=10)
    Local(h=0.5, blocks=10, partitions=4, most_rows=1000000, seed=0)
    """

    h: Number = 0.8
    blocks: int | None = field(default=None, metadata={"static": True})
    partitions: int = field(default=4, metadata={"static": True})
    most_rows: int = field(default=MOST_ROWS, metadata={"static": True})
    seed: int = field(default=0, metadata={"static": True})

    def lay_out(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return each cluster's rows in blocks that share its basis and variances."""
        _check_bandwidth(self.h)
        if self.h > 1:
            raise ValueError(f"h: expected at most 1, a Gaussian mixture, got {self.h}")
        blocks = usual_blocks(*x.shape) if self.blocks is None else self.blocks
        for name, value in (
            ("blocks", blocks), ("partitions", self.partitions), ("most_rows", self.most_rows)
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        seeds = range(self.seed, self.seed + self.partitions)
        labels = [found.labels for found in clusterings((x, blocks, seed) for seed in seeds)]
        clusters = shrunk_clusters(x, weights, labels)
        return clustered_blocks(x, weights, clusters, self.h, rows, most_rows=self.most_rows)


def usual_blocks(n: int, d: int) -> int:
    """Return ``sqrt(n / d)``, from 1 to 160: as many clusters as each has rows per column."""
    return int(np.clip(np.sqrt(n / d), 1, 160))


def _check_bandwidth(h: Any) -> None:
    if not h > 0:
        raise ValueError(f"h: expected a positive bandwidth, got {h}")


class Clusters(NamedTuple):
    """The clusters of all partitions, k of them.

    Attributes:
        members: The rows of every cluster.
        means: (k, d).
        covariances: (k, d, d).
        shrunk: The covariances shrunk, (k, d, d).
        sizes: Mean squared length of a row in pooled units, (k,).
        root: A square root of the pooled covariance, (d, d).
        partitions: Number of partitions.
    """

    members: list[np.ndarray]
    means: np.ndarray
    covariances: np.ndarray
    shrunk: np.ndarray
    sizes: np.ndarray
    root: np.ndarray
    partitions: int


class _Shapes(NamedTuple):
    """Of every cluster: its kernel's basis and variances, the pull on its rows, how many rows do."""

    bases: np.ndarray
    variances: np.ndarray
    pulls: np.ndarray
    enough: np.ndarray


def _covariance(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = weights / weights.sum()
    mean = share @ x
    centred = x - mean
    return mean, (share * centred.T) @ centred


def shrunk_clusters(x: np.ndarray, weights: np.ndarray, partitions: list[np.ndarray]) -> Clusters:
    """Return the clusters that the ``partitions`` label, covariances shrunk towards the pooled one.

    The amount is Ledoit and Wolf's, in coordinates where the pooled covariance is the identity.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    members = [np.flatnonzero(labels == c) for labels in partitions for c in np.unique(labels)]
    moments = [_covariance(x[index], weights[index]) for index in members]
    means, covariances = (np.stack(part) for part in zip(*moments, strict=True))
    masses = [weights[index].sum() for index in members]
    values, vectors = np.linalg.eigh(np.average(covariances, axis=0, weights=masses))
    floor = 1e-6 * np.average(np.var(x, axis=0)) + 1e-12
    root = _scaled(vectors, np.sqrt(np.maximum(values, floor)))
    inverse = np.linalg.inv(root)
    amounts, sizes = [], []
    for index, mean in zip(members, means, strict=True):
        unit = (x[index] - mean) @ inverse.T
        several = min(unit.shape) > 1
        amounts.append(ledoit_wolf_shrinkage(unit, assume_centered=True) if several else 0.0)
        sizes.append(max(np.mean(unit**2), 1e-6))
    amount, size = (np.reshape(a, (-1, 1, 1)) for a in (amounts, sizes))
    shrunk = (1 - amount) * covariances + amount * size * (root @ root.T)
    return Clusters(members, means, covariances, shrunk, np.array(sizes), root, len(partitions))


def _shapes(clusters: Clusters, h: float, preserve: bool) -> _Shapes:
    """Return the shapes of all clusters' kernels of bandwidth ``h``."""
    root, covariances = clusters.root, clusters.covariances
    kernels, d = h**2 * clusters.shrunk, len(root)
    if preserve:  # enough rows to trust: never wider than the cluster itself
        trusted = np.array([len(index) >= 5 * d for index in clusters.members])
        kernels[trusted] = _narrower(kernels[trusted], covariances[trusted])
    values, bases = np.linalg.eigh(kernels)
    floors = 1e-6 * h**2 * clusters.sizes * (root**2).sum() / d
    variances = np.maximum(values, floors[:, None])
    if not preserve:
        every = np.full(len(bases), np.inf)
        return _Shapes(bases, variances, np.broadcast_to(np.eye(d), bases.shape), every)
    relative = _relative(_scaled(bases, variances) @ _turned(bases), covariances)
    return _Shapes(bases, variances, _pull(*relative), _enough(relative[2]))


def _turned(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, -1, -2)


def _scaled(matrices: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the matrices' columns times ``factors``."""
    return matrices * factors[..., None, :]


def _roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``R`` and its inverse with ``R R' = covariance``, flat directions floored."""
    values, vectors = np.linalg.eigh(covariance)
    largest = np.maximum(values[..., -1:], 1e-300)
    root = np.sqrt(np.maximum(values, 1e-12 * largest))
    return _scaled(vectors, root), _turned(_scaled(vectors, 1 / root))


def _relative(kernel: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return ``R`` and its inverse, ``R R' = covariance``, and the kernel's variances and axes there."""
    root, inverse = _roots(covariance)
    return root, inverse, *np.linalg.eigh(inverse @ kernel @ _turned(inverse))


def _narrower(kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return ``kernel``, cut to ``covariance`` in the directions where it is wider."""
    root, _, ratios, axes = _relative(kernel, covariance)
    axes = root @ axes
    return _scaled(axes, np.minimum(ratios, 1)) @ _turned(axes)


def _pull(
    root: np.ndarray, inverse: np.ndarray, ratios: np.ndarray, axes: np.ndarray
) -> np.ndarray:
    """Return ``A`` with ``A S A' + C = S``; in directions where ``C > S`` the rows collapse."""
    return root @ _scaled(axes, np.sqrt(np.clip(1 - ratios, 0, None))) @ _turned(axes) @ inverse


def _enough(ratios: np.ndarray) -> np.ndarray:
    """Return how many rows of a cluster, drawn at random, give its law within ``BLURRED`` nats.

    With ``r`` the kernel's share of the cluster's variance along each axis, the density of ``m`` of a
    Gaussian cluster's pulled rows, their mean kept, has a relative variance of
    ``(prod 1/r - 1 - sum (1 - r)) / m``; half of it is the Kullback-Leibler divergence.
    """
    ratios = np.clip(ratios, 1e-12, 1)
    spread = np.exp(np.minimum(-np.log(ratios).sum(-1), 100)) - 1 - (1 - ratios).sum(-1)
    return np.ceil(spread / (2 * BLURRED))


def clustered_blocks(
    x: np.ndarray,
    weights: np.ndarray,
    clusters: Clusters,
    h: float,
    rows: int,
    preserve: bool = True,
    most_rows: int | None = None,
) -> Blocks:
    """Return the clusters of every partition, cut into equal blocks so that little is padded.

    Given ``most_rows``, every cluster keeps at most as many of its rows as the others, drawn at random:
    as many as tell under the kernel (see ``_enough``; the median cluster decides), and no more than
    ``most_rows`` in all. Its kernel's shape comes from all of them.
    """
    shapes, kept = _shapes(clusters, h, preserve), clusters.members
    if most_rows is not None:
        turn = np.random.default_rng(0).permutation(len(x))
        most = equal_share(np.array([len(index) for index in kept]), most_rows)
        most = int(np.clip(np.median(shapes.enough), 5, most))  # one number: nothing is padded
        kept = [index[np.argsort(turn[index])[:most]] for index in kept]
    rows = block_size(np.array([len(part) for part in kept]), rows)
    moved, share, parts, cluster, start = [], [], [], [], 0
    for k, (index, whole) in enumerate(zip(kept, clusters.members, strict=True)):
        mass = weights[index] / weights[index].sum()
        centred = x[index] - mass @ x[index]
        points = centred @ shapes.pulls[k].T @ shapes.bases[k]  # around the mean, in its basis
        for piece in bisect(points, np.arange(len(index)), -(-len(index) // rows)):
            parts.append(start + piece)
            cluster.append(k)
        moved.append(points)
        share.append(mass * weights[whole].sum() / clusters.partitions)
        start += len(index)
    bases, variances = shapes.bases[cluster], shapes.variances[cluster]
    packed = pack(np.concatenate(moved), np.concatenate(share), parts, variances)
    centres = clusters.means[cluster] + np.einsum("kd,ked->ke", packed.centres, bases)
    return Blocks(packed.rows, packed.log_weights, centres, bases, packed.variances)
