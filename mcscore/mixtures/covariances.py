r"""Covariances of clusters: shrunk, made into kernels, and rows pulled in so that clusters keep theirs.

`kernels` says which bandwidth ``h``; here ``h^2`` times each cluster's covariance becomes the basis and the
variances that its rows share, and the clusters are cut into blocks.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, rung
from mcscore.jet.blocks import Blocks
from mcscore.mixtures.layout import bisect, block_size, equal_share, pack

BLURRED = 0.002  # nats by which a cluster's law may change where its rows are thinned
SMALL = 4096  # rows of a law, over all partitions: below, its shapes are powers of two


class Clusters(NamedTuple):
    """The clusters of all partitions, k of them.

    Attributes:
        members: The rows of every cluster.
        means: (k, d).
        covariances: (k, d, d).
        shrunk: The covariances shrunk, (k, d, d).
        effective: Effective numbers of rows, ``(sum w)^2 / sum w^2``, (k,).
        sizes: Mean squared length of a row in pooled units, (k,).
        root: A square root of the pooled covariance, (d, d).
    """

    members: list[np.ndarray]
    means: np.ndarray
    covariances: np.ndarray
    shrunk: np.ndarray
    effective: np.ndarray
    sizes: np.ndarray
    root: np.ndarray


class _Shapes(NamedTuple):
    """Of every cluster: its kernel's basis and variances, the pull on its rows, how many rows do."""

    bases: np.ndarray
    variances: np.ndarray
    pulls: np.ndarray
    enough: np.ndarray


def _covariance(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = weights / weights.sum()
    mean = share @ x
    centered = x - mean
    return mean, (share * centered.T) @ centered


def ledoit_wolf(x: np.ndarray, share: np.ndarray) -> float:
    """Return how far the covariance of centered rows is to be shrunk towards a multiple of the identity.

    Ledoit and Wolf (2004), A well-conditioned estimator, for rows (n, d) of unequal weights (n,) that sum
    to one: the variance of a weighted mean has ``sum share^2`` where theirs has ``1/n``.
    """
    if min(x.shape) == 1:
        return 0.0
    covariance = (share * x.T) @ x
    size, squares = np.trace(covariance) / x.shape[1], np.sum(covariance**2)
    distance = squares - x.shape[1] * size**2  # from the multiple of the identity
    error = (share @ np.sum(x**2, 1) ** 2 - squares) * np.sum(share**2)
    return float(min(error, distance) / distance) if distance > 0 and error > 0 else 0.0


def shrunk_clusters(x: np.ndarray, weights: np.ndarray, partitions: list[np.ndarray]) -> Clusters:
    """Return the clusters that the ``partitions`` label, covariances shrunk towards the pooled one.

    The amount is Ledoit and Wolf's, in coordinates where the pooled covariance is the identity. Rows whose
    label is negative are not of a partition.
    """
    members = [
        np.flatnonzero(labels == c) for labels in partitions for c in np.unique(labels) if c >= 0
    ]
    moments = [_covariance(x[index], weights[index]) for index in members]
    means, covariances = (np.stack(part) for part in zip(*moments, strict=True))
    masses = [weights[index].sum() for index in members]
    values, vectors = np.linalg.eigh(np.average(covariances, axis=0, weights=masses))
    overall = _covariance(x, weights)[1]
    floor = 1e-6 * np.trace(overall) / len(overall) or 1e-12  # of equal rows, any
    root = _scaled(vectors, np.sqrt(np.maximum(values, floor)))
    inverse = np.linalg.inv(root)
    amounts, sizes, effective = [], [], []
    for index, mean in zip(members, means, strict=True):
        unit, share = (x[index] - mean) @ inverse.T, weights[index] / weights[index].sum()
        amounts.append(ledoit_wolf(unit, share))
        effective.append(1 / np.sum(share**2))
        sizes.append(max(share @ np.mean(unit**2, 1), 1e-6))
    amount, size = (np.reshape(a, (-1, 1, 1)) for a in (amounts, sizes))
    shrunk = (1 - amount) * covariances + amount * size * (root @ root.T)
    numbers = np.array(effective), np.array(sizes)
    return Clusters(members, means, covariances, shrunk, *numbers, root)


def stretched(along: np.ndarray, ratio: float) -> np.ndarray:
    """Return the matrix (d, d) by which ``y @ along`` becomes ``ratio`` times itself; the rest stays."""
    return np.eye(len(along)) + (ratio - 1) * along @ np.linalg.pinv(along)


def _shapes(clusters: Clusters, h: float, preserve: bool, stretch: np.ndarray | None) -> _Shapes:
    """Return the shapes of all clusters' kernels of bandwidth ``h``."""
    root, covariances = clusters.root, clusters.covariances
    kernels, d = h**2 * clusters.shrunk, len(root)
    if stretch is not None:
        kernels = stretch.T @ kernels @ stretch
    if preserve:  # enough rows to trust: never wider than the cluster itself
        trusted = clusters.effective >= 5 * d
        kernels[trusted] = _narrower(kernels[trusted], covariances[trusted])
    values, bases = np.linalg.eigh(kernels)
    floors = 1e-6 * h**2 * clusters.sizes * (root**2).sum() / d
    variances = np.maximum(values, floors[:, None])
    if not preserve:
        every = np.full(len(bases), np.inf)
        return _Shapes(bases, variances, np.broadcast_to(np.eye(d), bases.shape), every)
    axes = relative(_scaled(bases, variances) @ _turned(bases), covariances)
    return _Shapes(bases, variances, pull(*axes), _enough(axes[2]))


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


def relative(kernel: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return ``R`` and its inverse, ``R R' = covariance``, and the kernel's variances and axes there."""
    root, inverse = _roots(covariance)
    return root, inverse, *np.linalg.eigh(inverse @ kernel @ _turned(inverse))


def _narrower(kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return ``kernel``, cut to ``covariance`` in the directions where it is wider."""
    root, _, ratios, axes = relative(kernel, covariance)
    axes = root @ axes
    return _scaled(axes, np.minimum(ratios, 1)) @ _turned(axes)


def pull(root: np.ndarray, inverse: np.ndarray, ratios: np.ndarray, axes: np.ndarray) -> np.ndarray:
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


def _to_a_rung(
    points: np.ndarray, parts: list[np.ndarray], cluster: list[int], digits: int
) -> tuple[list[np.ndarray], list[int]]:
    """Return the parts and their clusters, the largest cut in two so that their number is a ``rung``."""
    sizes = np.array([len(part) for part in parts])
    largest = np.argsort(-sizes, kind="stable")[: rung(len(parts), digits) - len(parts)]
    times = np.ones(len(parts), int)
    times[largest] = np.minimum(sizes[largest], 2)
    cut = [bisect(points, part, m) for part, m in zip(parts, times.tolist(), strict=True)]
    return list(chain.from_iterable(cut)), np.repeat(cluster, times).tolist()


def clustered_blocks(
    key: Array,
    x: np.ndarray,
    weights: np.ndarray,
    clusters: Clusters,
    h: float,
    rows: int,
    preserve: bool = True,
    most_rows: int | None = None,
    stretch: np.ndarray | None = None,
) -> Blocks:
    """Return the clusters of every partition, cut into equal blocks so that little is padded.

    Given ``most_rows``, every cluster keeps at most as many of its rows as the others, drawn at random:
    as many as tell under the kernel (see ``_enough``; the median cluster decides), and no more than
    ``most_rows`` in all. Its kernel's shape comes from all of them. Kernels are multiplied by ``stretch``.
    """
    shapes, kept = _shapes(clusters, h, preserve, stretch), clusters.members
    if most_rows is not None:
        turn = host_generator(key).permutation(len(x))
        most = equal_share(np.array([len(index) for index in kept]), most_rows)
        most = int(np.clip(np.median(shapes.enough), 5, most))  # one number: nothing is padded
        kept = [index[np.argsort(turn[index])[:most]] for index in kept]
    sizes = np.array([len(part) for part in kept])
    masses = np.array([weights[whole].sum() for whole in clusters.members])
    small = sizes.sum() <= SMALL  # the fewer rows, the more do programs weigh
    rows, digits = (min(rows, 32), 1) if small else (block_size(sizes, rows), 4)
    moved, share, parts, cluster, start = [], [], [], [], 0
    for k, index in enumerate(kept):
        mass = weights[index] / weights[index].sum()
        centered = x[index] - mass @ x[index]
        points = centered @ shapes.pulls[k].T @ shapes.bases[k]  # around the mean, in its basis
        for piece in bisect(points, np.arange(len(index)), -(-len(index) // rows)):
            parts.append(start + piece)
            cluster.append(k)
        moved.append(points)
        share.append(mass * masses[k] / masses.sum())
        start += len(index)
    points = np.concatenate(moved)
    parts, cluster = _to_a_rung(points, parts, cluster, digits)
    bases, variances = shapes.bases[cluster], shapes.variances[cluster]
    height = rung(max(map(len, parts)), digits)
    packed = pack(points, np.concatenate(share), parts, variances, height)
    centers = clusters.means[cluster] + np.einsum("kd,ked->ke", packed.centers, bases)
    return Blocks(packed.rows, packed.log_weights, centers, bases, packed.variances)
