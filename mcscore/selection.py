r"""Choosing the law: frame, number of clusters and bandwidth by held-out log-likelihood.

For a split of the rows, everything that is fitted (frame, clusters, covariances, centres) sees the
training part only; the held-out part is scored in the user's units, so that frames compare too. Small
tables are split several times, of large ones a part is searched. The chosen law is then laid out with all
rows; where EM had not seen as many as it takes, they are clustered anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from mcscore.calibration import SMALL, calibrated
from mcscore.clustering import FITTING_ROWS, Clustering, assignments, clusterings
from mcscore.columns import on_device
from mcscore.covariances import Clusters, clustered_blocks, shrunk_clusters
from mcscore.draws import draw
from mcscore.frames import Affine, Gaussianize
from mcscore.jet import Blocks, stream
from mcscore.kernels import MOST_ROWS, Kernel, Local, scott, usual_blocks
from mcscore.metrics import memorisation

BANDWIDTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CLEARLY = 0.01  # nats
SEARCHED_ROWS = 500_000  # of larger tables, a part shows as well which law is best
ROUNDED = 2**16  # rows of a law in trials: beyond, padding costs more than a program of its own


@dataclass(frozen=True)
class Auto(Kernel):
    """Choose frame, number of clusters and bandwidth of a `Local` kernel by held-out likelihood.

    Args:
        closeness: Divides the chosen bandwidth: above 1 samples stay closer to the data than the
            likelihood asks for, below 1 they are smoother.
        frames: Candidates, where ``mixture`` is given no frame.
        partitions: Independent clusterings whose laws are averaged; by default 8 for 1,500 to 6,000
            rows, which profit most and cost least, else 4; fewer where that is clearly better: because no
            row is then left out (``most_rows``), or one clustering surpasses the others.
        most_blocks: Clusters per partition, at most.
        most_rows: Rows stored over all partitions, at most; beyond, clusters keep samples of theirs (see
            ``Local``). Every evaluation of the law costs in proportion.
        seed: Of splits and clusterings.

    >>> Auto(closeness=2.0).closeness
    2.0
    """

    closeness: float = 1.0
    frames: tuple[Any, ...] = (Gaussianize(), Affine(whiten=True))
    partitions: int | None = None
    most_blocks: int = 160
    most_rows: int = MOST_ROWS
    seed: int = 0


class Trial(NamedTuple):
    """One point of the curve: held-out log-likelihood per row, in nats and the user's units."""

    frame: str
    blocks: int
    partitions: int
    h: float
    log_likelihood: float


class Choice(NamedTuple):
    """The chosen law, laid out with all rows, and the evidence behind it.

    Attributes:
        frame: The chosen frame.
        kernel: The chosen kernel.
        fitted: The frame fitted to all rows.
        blocks: The law of all rows, arrays in float64.
        evidence: ``log_likelihood``, ``memorisation`` and ``curve`` of the `Report`.
    """

    frame: Any
    kernel: Local
    fitted: Any
    blocks: Blocks
    evidence: dict[str, Any]


class _Split:
    """A training and a held-out part in one frame, with the clusterings found so far."""

    def __init__(
        self, x: np.ndarray, weights: np.ndarray, held: np.ndarray, frame: Any, auto: Auto
    ):
        self.frame, self.fitted = frame, frame.fit(x[~held], weights[~held])
        self.x, self.weights = self.fitted.forward(x[~held]), weights[~held] / weights[~held].sum()
        self.training, self.held = x[~held], x[held]
        self.share = weights[held] / weights[held].sum()
        self.auto = auto
        self.found: dict[int, list[Clustering]] = defaultdict(list)
        self.clusters: dict[tuple[int, int], Clusters] = {}

    def law(self, blocks: int, partitions: int, h: float) -> Blocks:
        """Return the law of the training part."""
        if (blocks, partitions) not in self.clusters:
            labels = [found.labels for found in self.found[blocks][:partitions]]
            self.clusters[blocks, partitions] = shrunk_clusters(self.x, self.weights, labels)
        clusters, most_rows = self.clusters[blocks, partitions], self.auto.most_rows
        laid = clustered_blocks(self.x, self.weights, clusters, h, 1024, most_rows=most_rows)
        return on_device(_rounded_up(laid) if laid.log_weights.size <= ROUNDED else laid)

    def score(self, blocks: int, partitions: int, h: float) -> float:
        """Return the mean held-out log-likelihood."""
        return self.log_likelihood(self.fitted, self.law(blocks, partitions, h))

    def log_likelihood(self, frame: Any, law: Blocks) -> float:
        """Return the mean log-likelihood of the held-out rows, in nats and the user's units."""
        y = frame.forward(self.held)  # on the host, in float64
        log_p = np.asarray(_log_density(_padded(y, 0), law), np.float64)[: len(y)]
        return float(self.share @ (np.maximum(log_p, -1e4) + frame.log_det(self.held)))

    def memorisation(self, frame: Any, law: Blocks) -> float:
        """Return ``metrics.memorisation`` of as many draws as held-out rows, columns standardised."""
        n = len(self.held)
        draws = draw(jax.random.key(self.auto.seed), law, _power_of_two(n))[:n]
        draws = frame.restore(frame.inverse(np.asarray(draws, np.float64)))
        tables = draws, self.training, self.held
        return memorisation(*(np.asarray(a) / self.training.std(0) for a in tables)).share


def _cluster(
    splits: list[_Split], numbers: Iterable[int], partitions: int, *, thorough: bool = False
) -> None:
    """Cluster every split into each of the ``numbers`` of blocks, ``partitions`` times, side by side."""
    wanted = [
        (split, blocks, seed)
        for blocks in numbers
        for split in splits
        for seed in range(len(split.found[blocks]), partitions)
    ]
    jobs = ((split.x, blocks, split.auto.seed + seed) for split, blocks, seed in wanted)
    for (split, blocks, _), found in zip(wanted, clusterings(jobs, thorough=thorough), strict=True):
        split.found[blocks].append(found)


@jax.jit
def _log_density(y: jax.Array, blocks: Blocks) -> jax.Array:
    return stream(y, 1.0, 0.0, blocks).log_p


def _rounded_up(blocks: Blocks) -> Blocks:
    """Return the same law in shapes of powers of two, so that trials share compiled programs."""
    rows, log_weights, *others = jax.tree.leaves(blocks)
    log_weights = _padded(_padded(log_weights, 0, -np.inf), 1, -np.inf)
    return Blocks(_padded(_padded(rows, 0), 1), log_weights, *(_padded(a, 0) for a in others))


def _padded(a: np.ndarray, axis: int, value: float | None = None) -> np.ndarray:
    """Return ``a``, its ``axis`` lengthened to a power of two by ``value`` or its own last entry."""
    more = [(0, 0)] * a.ndim
    more[axis] = (0, _power_of_two(a.shape[axis]) - a.shape[axis])
    return np.pad(a, more, "edge") if value is None else np.pad(a, more, constant_values=value)


def _power_of_two(size: int) -> int:
    """Return the least that is at least ``size`` and 64."""
    return max(64, 2 ** (size - 1).bit_length())


def _climb(trial: Callable[[Any], Trial], candidates: Sequence[Any], start: Any) -> Trial:
    """Return the best trial: from ``start`` in either direction as long as the likelihood rises."""
    known = {candidates.index(start): trial(start)}
    (best,) = known
    for step in (-1, 1):
        while (other := best + step) not in known and 0 <= other < len(candidates):
            known[other] = trial(candidates[other])
            if known[other].log_likelihood <= known[best].log_likelihood:
                break
            best = other
    return known[best]


class _Search:
    """Trials by held-out likelihood, all of them kept in the ``curve``."""

    def __init__(self, auto: Auto):
        self.auto = auto
        self.several = min(auto.partitions or 4, 4)  # one partition is a matter of luck
        self.curve: list[Trial] = []

    def bandwidth(
        self,
        splits: list[_Split],
        blocks: int,
        partitions: int,
        grid: Sequence[float],
        start: float | None = None,
    ) -> Trial:
        """Return the best trial over ``grid``, climbing from ``start``, by default Scott's."""
        _cluster(splits, [blocks], partitions)
        rows, d = splits[0].x.shape
        start = scott(rows / blocks, d) if start is None else start
        frame = type(splits[0].frame).__name__

        def trial(h: float) -> Trial:
            score = np.mean([split.score(blocks, partitions, h) for split in splits])
            self.curve.append(Trial(frame, blocks, partitions, h, float(score)))
            return self.curve[-1]

        return _climb(trial, grid, min(grid, key=lambda h: abs(h - start)))

    def frame(self, by_frame: list[list[_Split]], blocks: int) -> Any:
        """Return the best frame, given splits in each."""
        _cluster([split for splits in by_frame for split in splits], [blocks], self.several)
        found = [
            self.bandwidth(splits, blocks, self.several, BANDWIDTHS[2::2]) for splits in by_frame
        ]
        return by_frame[int(np.argmax([best.log_likelihood for best in found]))][0].frame

    def blocks(self, splits: list[_Split], n: int, guess: int) -> Trial:
        """Return the best trial over numbers of blocks, an optimum so broad that one partition shows it.

        Of small tables, not so broad, several partitions do.
        """
        several = self.several if n <= SMALL else 1
        most = max(1, min(self.auto.most_blocks, n // 10))
        numbers = sorted({int(np.clip(round(guess * 2.0**k), 1, most)) for k in range(-8, 9)})
        start = min(guess, most)
        if len(splits) <= 2:  # the first three clusterings, else one core's work each, side by side
            middle = numbers.index(start)
            _cluster(splits, numbers[max(0, middle - 1) : middle + 2], 1)

        def trial(blocks: int) -> Trial:
            partitions = several if blocks > 1 else 1  # one cluster is the same in all of them
            return self.bandwidth(splits, blocks, partitions, BANDWIDTHS[1::2])

        return _climb(trial, numbers, start)

    def partitions(self, splits: list[_Split], n: int, first: Trial) -> Trial:
        """Return the best trial with as many partitions as pay, of as many blocks as the ``first``."""
        partitions = self.auto.partitions or (8 if SMALL < n <= 6000 else 4)
        if first.blocks == 1:
            partitions = 1
        if hasty := len(splits[0].x) > FITTING_ROWS:  # the clusters of the trials so far
            for split in splits:
                split.found.clear()
                split.clusters.clear()
            _cluster(splits, [first.blocks], partitions, thorough=True)
        best = self.bandwidth(splits, first.blocks, partitions, BANDWIDTHS, first.h)
        if self.auto.partitions is not None:
            return best
        if hasty:
            first = self.bandwidth(splits, first.blocks, 1, BANDWIDTHS, best.h)
        fewer = [first]  # one clustering may be a better one than the rest
        if 0 < (whole := self.auto.most_rows // n) < partitions:  # of which none leaves rows out
            fewer.append(self.bandwidth(splits, first.blocks, whole, BANDWIDTHS, best.h))
        other = max(fewer, key=lambda trial: trial.log_likelihood)
        return other if other.log_likelihood > best.log_likelihood + CLEARLY else best


def choose(
    x: np.ndarray, weights: np.ndarray, auto: Auto, frames: tuple[Any, ...], rows: int
) -> Choice:
    """Return the best law found for the rows ``x`` (n, d), in blocks of at most ``rows`` of them.

    The curve is of frames as fitted; the reported likelihood is of the calibrated one.

    Raises:
        ValueError: If there are fewer than five rows (a fifth is held out), or a column is constant.
    """
    n, d = x.shape
    if n < 5:
        raise ValueError(f"x: Auto() needs at least 5 rows of positive weight, got {n}")
    for j in np.flatnonzero(np.ptp(x, axis=0) == 0):
        raise ValueError(f"x: column {j} is constant ({x[0, j]:g}); Auto() cannot choose its law")
    order = np.random.default_rng(auto.seed).permutation(n)
    folds = 1 if n > 5000 else 2 if n > SMALL else 5
    held = [np.isin(np.arange(n), order[k::5][:3000]) for k in range(folds)]
    guess = min(usual_blocks(n, d), auto.most_blocks)

    def splits_of(rows: np.ndarray, frame: Any) -> list[_Split]:
        return [_Split(x[rows], weights[rows], part[rows], frame, auto) for part in held]

    search, frame = _Search(auto), frames[0]
    if len(frames) > 1:  # on part of the rows: the frames' difference is large or does not matter
        frame = search.frame([splits_of(order[:4000], frame) for frame in frames], min(guess, 30))
    splits = splits_of(np.arange(n) if n <= SEARCHED_ROWS else order[:SEARCHED_ROWS], frame)
    winner = search.partitions(splits, n, search.blocks(splits, n, guess))

    h = float(np.clip(winner.h / auto.closeness, 1e-3, 1.0))
    kernel = Local(h, winner.blocks, winner.partitions, auto.most_rows, auto.seed)
    fitted = frame.fit(x, weights)
    y = fitted.forward(x)
    if len(splits[0].x) < FITTING_ROWS:
        law = kernel.lay_out(y, weights, rows)
    else:
        found = splits[0].found[winner.blocks][: winner.partitions]
        labels = assignments(found, splits[0].fitted.forward(x))
        clusters = shrunk_clusters(y, weights, labels)
        law = clustered_blocks(y, weights, clusters, h, rows, most_rows=auto.most_rows)
    likelihoods, shares = [], []
    for split in splits:
        trained = split.law(winner.blocks, winner.partitions, h)
        apart = calibrated(split.fitted, trained, split.training, split.weights)
        likelihoods.append(split.log_likelihood(apart, trained))
        shares.append(split.memorisation(apart, trained))
    evidence = dict(
        log_likelihood=float(np.mean(likelihoods)),
        memorisation=float(np.mean(shares)),
        curve=search.curve,
    )
    return Choice(frame, kernel, calibrated(fitted, law, x, weights), law, evidence)
