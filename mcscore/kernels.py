r"""Kernels: which Gaussian each datum carries, so that the data law is ``sum_i w_i N(m_i, C)``.

| kernel                          | C                 | law                                        |
|---------------------------------|-------------------|--------------------------------------------|
| `Dirac()`                       | 0                 | the empirical measure (arXiv 2310.14458)   |
| `Isotropic(h)`                  | h^2 I             | kernel density estimate                    |
| `Whitened(h)`                   | h^2 Cov(x)        | the same in whitened coordinates           |
| `Local(h, blocks, partitions)`  | h^2 Cov(cluster)  | one covariance per cluster of rows         |

A kernel may pull rows towards the mean of their cluster, ``m_i = mu + A (x_i - mu)``, with ``A`` such
that ``A S A' + C = S``: rows and kernel together keep the cluster's covariance ``S`` exactly, wherever
the kernel is not wider than the cluster. `Local` always does: ``h -> 0`` is the data, ``h = 1`` a
Gaussian mixture. Its independent partitions of the same rows stand side by side; their laws average.

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

MOST_ROWS = 1_000_000  # rows stored at most
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
            pull = _pull((weights * centred.T) @ centred, self.h**2 * np.eye(x.shape[1]))
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

    Clusters come from a Gaussian mixture fitted by EM (scikit-learn) to at most 15,000 rows, started
    from MiniBatchKMeans; covariances of small clusters are shrunk (Ledoit-Wolf).

    Args:
        h: Share of each cluster's spread that is kernel, in ``(0, 1]``: towards 0 the law copies the
            data, 1 is a Gaussian mixture.
        blocks: Clusters per partition.
        partitions: Independent clusterings whose laws are averaged.
        most_rows: Rows stored over all partitions, at most. Beyond, each cluster keeps a sample of its
            own rows, of equal size for all and with the cluster's whole mass and shape: the law costs
            that much less to evaluate, for a little likelihood.
        seed: Of the clusterings.

    >>> Local(0.5, blocks=10)
    Local(h=0.5, blocks=10, partitions=4, most_rows=1000000, seed=0)
    """

    h: Number
    blocks: int = field(metadata={"static": True})
    partitions: int = field(default=4, metadata={"static": True})
    most_rows: int = field(default=MOST_ROWS, metadata={"static": True})
    seed: int = field(default=0, metadata={"static": True})

    def lay_out(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return each cluster's rows in blocks that share its basis and variances."""
        _check_bandwidth(self.h)
        if self.h > 1:
            raise ValueError(f"h: expected at most 1, a Gaussian mixture, got {self.h}")
        for name in ("blocks", "partitions", "most_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        seeds = range(self.seed, self.seed + self.partitions)
        labels = [found.labels for found in clusterings((x, self.blocks, seed) for seed in seeds)]
        clusters = shrunk_clusters(x, weights, labels)
        return clustered_blocks(x, weights, clusters, self.h, rows, most_rows=self.most_rows)


def _check_bandwidth(h: Any) -> None:
    if not h > 0:
        raise ValueError(f"h: expected a positive bandwidth, got {h}")


def balanced_blocks(x: np.ndarray, weights: np.ndarray, rows: int, variance: float) -> Blocks:
    """Return blocks of neighbouring rows, equal in size up to one row, with isotropic variance."""
    parts = bisect(x, np.arange(len(x)), -(-len(x) // rows))
    return pack(x, weights, parts, np.full((len(parts), x.shape[1]), variance))


def bisect(x: np.ndarray, index: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut the widest column, again and again, into ``parts`` parts equal up to a row (a k-d tree).

    Neighbouring rows in one block keep the block's radius, and with it float32's loss, small.
    """
    if parts == 1:
        return [index]
    part, left = x[index], parts // 2
    cut = len(index) * left // parts
    order = np.argpartition(part[:, np.argmax(np.ptp(part, axis=0))], cut)
    return bisect(x, index[order[:cut]], left) + bisect(x, index[order[cut:]], parts - left)


class _Shrunk(NamedTuple):
    """A cluster's rows, mean and covariance, and that shrunk; ``average``: its size in pooled units."""

    index: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    smooth: np.ndarray
    average: float


class Clusters(NamedTuple):
    """The clusters of all partitions, and a square root of their pooled covariance."""

    members: list[_Shrunk]
    root: np.ndarray
    partitions: int


class _Shape(NamedTuple):
    """The basis and variances of a cluster's kernel, and the pull on its rows."""

    basis: np.ndarray
    variances: np.ndarray
    pull: np.ndarray


def _covariance(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = weights / weights.sum()
    mean = share @ x
    centred = x - mean
    return mean, (share * centred.T) @ centred


def _pooled(x: np.ndarray, weights: np.ndarray, clusters: list[np.ndarray]) -> np.ndarray:
    """Return a square root of the mean covariance within clusters, flat directions floored."""
    parts = [weights[index].sum() * _covariance(x[index], weights[index])[1] for index in clusters]
    values, vectors = np.linalg.eigh(
        np.sum(parts, 0) / sum(weights[index].sum() for index in clusters)
    )
    floor = 1e-6 * np.average(np.var(x, axis=0)) + 1e-12
    return vectors * np.sqrt(np.maximum(values, floor))


def shrunk_clusters(x: np.ndarray, weights: np.ndarray, partitions: list[np.ndarray]) -> Clusters:
    """Return the clusters that the ``partitions`` label, covariances shrunk towards the pooled one.

    The amount is Ledoit and Wolf's, in coordinates where the pooled covariance is the identity.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    clusters = [np.flatnonzero(labels == c) for labels in partitions for c in np.unique(labels)]
    root = _pooled(x, weights, clusters)
    members = []
    for index in clusters:
        mean, covariance = _covariance(x[index], weights[index])
        unit = np.linalg.solve(root, (x[index] - mean).T).T
        several = len(index) > 1 and x.shape[1] > 1
        amount = ledoit_wolf_shrinkage(unit, assume_centered=True) if several else 0.0
        average = max(float(np.mean(unit**2)), 1e-6)
        smooth = (1 - amount) * covariance + amount * average * (root @ root.T)
        members.append(_Shrunk(index, mean, covariance, smooth, average))
    return Clusters(members, root, len(partitions))


def _shape(cluster: _Shrunk, h: float, root: np.ndarray, preserve: bool) -> _Shape:
    """Return the shape of a cluster's kernel of bandwidth ``h``."""
    covariance, d = cluster.covariance, len(root)
    kernel = h**2 * cluster.smooth
    if preserve and len(cluster.index) >= 5 * d:  # enough rows to trust: never wider than itself
        kernel = _narrower(kernel, covariance)
    values, basis = np.linalg.eigh(kernel)
    variances = np.maximum(values, 1e-6 * h**2 * cluster.average * (root**2).sum() / d)
    pull = _pull(covariance, (basis * variances) @ basis.T) if preserve else np.eye(d)
    return _Shape(basis, variances, pull)


def _roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``R`` and its inverse with ``R R' = covariance``, flat directions floored."""
    values, vectors = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(values, 1e-12 * max(values.max(), 1e-300)))
    return vectors * root, (vectors / root).T


def _narrower(kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return ``kernel``, cut to ``covariance`` in the directions where it is wider."""
    root, inverse = _roots(covariance)
    ratios, directions = np.linalg.eigh(inverse @ kernel @ inverse.T)
    return root @ (directions * np.minimum(ratios, 1)) @ directions.T @ root.T


def _pull(covariance: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return ``A`` with ``A S A' + C = S``; in directions where ``C > S`` the rows collapse."""
    root, inverse = _roots(covariance)
    ratios, directions = np.linalg.eigh(inverse @ kernel @ inverse.T)
    return root @ (directions * np.sqrt(np.clip(1 - ratios, 0, None))) @ directions.T @ inverse


def clustered_blocks(
    x: np.ndarray,
    weights: np.ndarray,
    clusters: Clusters,
    h: float,
    rows: int,
    preserve: bool = True,
    most_rows: int = MOST_ROWS,
) -> Blocks:
    """Return the clusters of every partition, cut into equal blocks so that little is padded.

    Beyond ``most_rows`` in all, every cluster keeps at most as many of its rows as the others, drawn at
    random; its shape comes from all of them.
    """
    turn = np.random.default_rng(0).permutation(len(x))
    whole = [cluster.index for cluster in clusters.members]
    most = _equal_share(np.array([len(index) for index in whole]), most_rows)
    thinned = [index[np.argsort(turn[index])[:most]] for index in whole]
    rows = block_size(np.array([len(part) for part in thinned]), rows)
    moved, share, parts, of_block, start = [], [], [], [], 0
    for cluster, index in zip(clusters.members, thinned, strict=True):
        shape = _shape(cluster, h, clusters.root, preserve)
        mass = weights[index] / weights[index].sum()
        centred = x[index] - mass @ x[index]
        points = centred @ shape.pull.T @ shape.basis  # around the cluster's mean, in its basis
        for piece in bisect(points, np.arange(len(index)), -(-len(index) // rows)):
            parts.append(start + piece)
            of_block.append((cluster.mean, shape.basis, shape.variances))
        moved.append(points)
        share.append(mass * weights[cluster.index].sum() / clusters.partitions)
        start += len(index)
    means, bases, variances = (np.stack(part) for part in zip(*of_block, strict=True))
    packed = pack(np.concatenate(moved), np.concatenate(share), parts, variances)
    centres = means + np.einsum("kd,ked->ke", packed.centres, bases)
    return Blocks(packed.rows, packed.log_weights, centres, bases, packed.variances)


def _equal_share(sizes: np.ndarray, total: int) -> int:
    """Return the largest ``m``, at least 5, with ``sum(min(sizes, m)) <= total``."""
    ordered = np.sort(sizes)
    kept = np.cumsum(np.append(0, ordered[:-1]))  # rows of all smaller clusters
    left = (total - kept) // np.arange(len(sizes), 0, -1)
    fits = np.flatnonzero(left < ordered)
    return max(5, int(left[fits[0]])) if len(fits) else int(ordered[-1])


def block_size(sizes: np.ndarray, most: int) -> int:
    """Return the rows per block, at most ``most``, that waste least on padding and small blocks."""

    def cost(size: int) -> tuple[bool, int]:
        counts = -(-sizes // size)
        stored = counts.sum() * int((-(-sizes // counts)).max())
        # Within 15 % of padding, a block by itself costs about as much as 80 rows.
        return bool(stored > sizes.sum() / 0.87), int(stored + 80 * counts.sum())

    sizes = np.asarray(sizes)
    return min(np.unique(np.geomspace(8, max(most, 8), 60).astype(int)).tolist(), key=cost)


def pack(
    x: np.ndarray, weights: np.ndarray, parts: list[np.ndarray], variances: np.ndarray
) -> Blocks:
    """Return the rows ``x[part]`` of every part as one padded block each."""
    shape = len(parts), max(map(len, parts))
    rows, log_weights = np.zeros((*shape, x.shape[1])), np.full(shape, -np.inf)
    # Centres are rounded to float32 first, so that row = centre + remainder holds in float32 too.
    centres = np.stack([x[part].mean(0) for part in parts]).astype(np.float32).astype(np.float64)
    for block, part in enumerate(parts):
        rows[block, : len(part)] = x[part] - centres[block]
        log_weights[block, : len(part)] = np.log(weights[part])
    return Blocks(rows, log_weights, centres, None, variances)
