"""A table divided in two: laws of the training part, judged by the part that was held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, on_device
from mcscore.frames import FrameKind, Placed
from mcscore.jet import Blocks, Evaluation, log_density
from mcscore.jet.sampling import draw
from mcscore.metrics import memorization
from mcscore.mixtures.clustering import Clustering, Job, clusterings
from mcscore.mixtures.covariances import (
    Clusters,
    clustered_blocks,
    shrunk_clusters,
    stretched,
)

LEAST = -1e4  # nats of a held-out row, at least: one far row alone must not decide
COPYING = 3_000  # draws by which it is judged: 0.5 is then known to 0.01
ROUNDED = 2**16  # rows of a law in trials: beyond, padding costs more than a program of its own


def judged(given: int, d: int) -> int:
    """Return how many held-out rows judge a law of ``d`` columns, at most; whole groups may be held out.

    Laws of columns given others differ by less.
    """
    return 3_000 if not given else 30_000 if d <= 4 else 10_000


def held_out(given: int, d: int) -> int:
    """Return how many rows are held out, at most: laws of few components are judged by all of them."""
    return 100_000 if given else judged(given, d)


class Split:
    """A training and a held-out part in one frame, with the clusterings found so far."""

    def __init__(
        self,
        key: Array,
        table: Placed,
        held: np.ndarray,
        frame: FrameKind,
        most_rows: int,
    ):
        self.key, self.thinning, self.judging = jax.random.split(key, 3)
        self.frame = frame.with_breaks(table.breaks)
        known, rows = table.of_rows(~held), np.flatnonzero(held)
        d = table.x.shape[1]
        some = host_generator(self.judging).permutation(rows)[: held_out(table.given, d)]
        judging, self.few = table.of_rows(some), min(judged(table.given, d), len(some))
        self.training, self.weights, self.strata = known.x, known.weights, known.strata
        self.held, self.share, self.gain = judging.x, judging.weights, judging.gain
        self.fitted = self.frame.fit(self.training, self.weights)
        placed = known.within(self.fitted)
        self.x, self.given, self.along = placed.x, placed.given, placed.along
        self.most_rows = most_rows
        self.found: dict[tuple[int, bool], list[Clustering]] = defaultdict(list)
        self.clusters: dict[tuple[int, int, bool], Clusters] = {}

    def seen(self, y: np.ndarray, by_condition: bool) -> np.ndarray:
        """Return what is clustered of rows in the frame's coordinates: all, or their conditions."""
        return y @ self.along if by_condition and self.along is not None else y

    def job(self, number: int, partition: int, by_condition: bool) -> Job:
        """Return the rows, their weights, number of clusters and key of one clustering."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, number), partition)
        return self.seen(self.x, by_condition), self.weights, number, key, self.strata

    def law(
        self,
        number: int,
        partitions: int,
        h: float,
        ratio: float | None = None,
        by_condition: bool = False,
    ) -> Blocks:
        """Return the law of the training part with a ``number`` of clusters per partition.

        Along conditions the bandwidth is ``ratio * h``; the clusters may be those of conditions.
        """
        if (kind := (number, partitions, by_condition)) not in self.clusters:
            labels = [found.labels for found in self.found[number, by_condition][:partitions]]
            self.clusters[kind] = shrunk_clusters(self.x, self.weights, labels)
        clusters = self.clusters[kind]
        stretch = None
        if ratio is not None and self.along is not None:
            stretch = stretched(self.along, ratio)
        laid = clustered_blocks(
            self.thinning, self.x, self.weights, clusters, h, 1024,
            most_rows=self.most_rows, stretch=stretch,
        )  # fmt: skip
        return on_device(_rounded_up(laid) if laid.log_weights.size <= ROUNDED else laid)

    def shares(self, rows: int) -> np.ndarray:
        """Return the shares of the first held-out rows."""
        return self.share[:rows] / self.share[:rows].sum()

    def log_likelihood(self, nats: np.ndarray) -> float:
        """Return the mean over rows, the same whatever law is judged."""
        return float(self.shares(self.few) @ nats[: self.few])

    def log_likelihoods(self, frame: Any, law: Blocks, rows: int | None = None) -> np.ndarray:
        """Return the log-likelihood of the first held-out rows, in nats and the user's units.

        With conditions, of the other columns given these.
        """
        rows = self.few if rows is None else min(rows, len(self.held))
        held, gain, d = self.held[:rows], self.gain[:rows], self.held.shape[1]
        log_p = _log_likelihoods(frame, law, held, gain)
        if self.given:
            columns = range(d - self.given, d)
            part, along = frame.part(columns, d)
            law = on_device(_marginal(jax.tree.map(np.asarray, law), np.asarray(along)))
            log_p -= _log_likelihoods(part, law, held[:, columns], gain[:, columns])
        return log_p

    def memorization(self, frame: Any, law: Blocks) -> float:
        """Return ``metrics.memorization`` of as many draws as held-out rows, standardized; at most 3,000."""
        n = min(self.few, COPYING)
        draws = draw(self.judging, law, _power_of_two(n))[:n]
        draws = frame.restore(frame.inverse(np.asarray(draws, np.float64)))
        tables = draws, self.training, self.held[:n]
        return memorization(*(np.asarray(a) / self.training.std(0) for a in tables)).share


def cluster(
    splits: list[Split],
    numbers: Iterable[int],
    partitions: int,
    *,
    thorough: bool = False,
    by_condition: bool = False,
) -> None:
    """Cluster every split into each of the ``numbers`` of clusters, ``partitions`` times, side by side."""
    wanted = [
        (split, number, partition)
        for number in numbers
        for split in splits
        for partition in range(len(split.found[number, by_condition]), partitions)
    ]
    jobs = (split.job(number, partition, by_condition) for split, number, partition in wanted)
    for (split, number, _), found in zip(wanted, clusterings(jobs, thorough=thorough), strict=True):
        split.found[number, by_condition].append(found)


def _log_likelihoods(frame: Any, law: Blocks, x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    y = frame.forward(x)  # on the host, in float64
    log_p = np.asarray(_log_density(_padded(y, 0), law), np.float64)[: len(y)]
    return np.maximum(log_p, LEAST) + frame.log_det(x) + gain.sum(1)


def _marginal(law: Blocks, along: np.ndarray) -> Blocks:
    """Return ``jet.marginal`` with NumPy, as no program need be compiled for a law's shape."""
    turned = along[None] if law.bases is None else np.swapaxes(law.bases, 1, 2) @ along
    variances, bases = np.linalg.eigh(
        np.swapaxes(turned, 1, 2) @ (law.variances[..., None] * turned)
    )
    rows = law.rows @ (turned @ bases)
    return Blocks(rows, law.log_weights, law.centers @ along, bases, variances)


@jax.jit
def _log_density(y: jax.Array, blocks: Blocks) -> jax.Array:
    return log_density(y, 1.0, 0.0, blocks, evaluation=Evaluation(careful=False))


def _rounded_up(blocks: Blocks) -> Blocks:
    """Return the same law in shapes of powers of two, so that trials share compiled programs."""
    rows, log_weights, centers, bases, variances = jax.tree.leaves(blocks)
    log_weights = _padded(_padded(log_weights, 0, -np.inf), 1, -np.inf)
    centers, bases, variances = (_padded(a, 0) for a in (centers, bases, variances))
    return Blocks(_padded(_padded(rows, 0), 1), log_weights, centers, bases, variances)


def _padded(a: np.ndarray, axis: int, value: float | None = None) -> np.ndarray:
    """Return ``a``, its ``axis`` lengthened to a power of two by ``value`` or its own last entry."""
    more = [(0, 0)] * a.ndim
    more[axis] = (0, _power_of_two(a.shape[axis]) - a.shape[axis])
    return np.pad(a, more, "edge") if value is None else np.pad(a, more, constant_values=value)


def _power_of_two(size: int) -> int:
    """Return the least that is at least ``size`` and 64."""
    return max(64, 2 ** (size - 1).bit_length())
