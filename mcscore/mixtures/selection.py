r"""Choosing the law: frame, number of clusters and bandwidth by held-out log-likelihood.

For a split of the rows, everything that is fitted (frame, clusters, covariances, centers) sees the
training part only; the held-out part is scored in the user's units, so that frames compare too. Small
tables are split several times, of large ones a part is searched. The chosen law is then laid out with all
rows; where EM had not seen as many as it takes, they are clustered anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, side_by_side
from mcscore._validation import Table, at_least, of_type
from mcscore.frames import Affine, FrameKind, Gaussianize, Placed
from mcscore.mixtures.clustering import FITTING_ROWS, Clustering
from mcscore.mixtures.kernels import (
    MOST_ROWS,
    Choice,
    Kernel,
    Local,
    rows_of_partitions,
    scott,
    usual_clusters,
)
from mcscore.mixtures.layout import SMALL, calibrated
from mcscore.mixtures.report import Trial
from mcscore.mixtures.splits import Split, cluster, held_out

BANDWIDTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RATIOS = (0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # of a condition's bandwidth to the others'
CLEARLY = 0.01  # nats
TWICE = 20_000  # rows: up to so many, two frames are searched where neither is clearly the better
MANY = 10**9  # held-out rows: all there are
FEW = 12  # clusters from which a conditional law's search starts
SEARCHED_ROWS = 500_000  # of larger tables, a part shows as well which law is best


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
        most_clusters: Clusters per partition, at most.
        most_rows: Rows stored over all partitions, at most; beyond, clusters keep samples of theirs (see
            ``Local``). Every evaluation of the law costs in proportion.

    >>> Auto(closeness=2.0).closeness
    2.0
    """

    spreads_ties: ClassVar[bool] = True
    closeness: float = 1.0
    frames: tuple[Any, ...] = (Gaussianize(), Affine(whiten=True))
    partitions: int | None = None
    most_clusters: int = 160
    most_rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        if not (isinstance(self.closeness, int | float) and 0 < self.closeness < np.inf):
            raise ValueError(f"closeness: expected a positive number, got {self.closeness!r}")
        of_type((tuple, list), "(mcs.Gaussianize(), mcs.Affine())", frames=self.frames)
        if not self.frames:
            raise ValueError("frames: expected one candidate at least, got none")
        for frame in self.frames:
            of_type(FrameKind, "mcs.Affine()", frames=frame)
        at_least(1, most_clusters=self.most_clusters, most_rows=self.most_rows)
        if self.partitions is not None:
            at_least(1, partitions=self.partitions)

    def usual_frames(self, table: Table) -> tuple[FrameKind, ...]:
        """Return the candidates."""
        return self.frames

    def choose(
        self,
        key: Array,
        tables: Sequence[Placed],
        frames: tuple[FrameKind, ...],
        rows: int,
    ) -> Choice:
        """Return the best law found, see ``selection.choose``."""
        return choose(key, tables, self, frames, rows)


def _climb(trial: Callable[[Any], Trial], candidates: Sequence[Any], start: Any) -> Trial:
    """Return the best trial: from ``start`` in either direction as long as the likelihood rises."""
    known = {candidates.index(start): trial(start)}
    (best,) = known
    for step in (-1, 1):
        while (other := best + step) not in known and 0 <= other < len(candidates):
            known[other] = trial(candidates[other])
            if not known[other].log_likelihood > known[best].log_likelihood:
                break
            best = other
    return known[best]


class _Search:
    """Trials by held-out likelihood, all of them kept in the ``curve``."""

    def __init__(self, auto: Auto):
        self.auto = auto
        self.several = min(auto.partitions or 4, 4)  # one partition is a matter of luck
        self.curve: list[Trial] = []
        self.by_row: dict[Trial, list[np.ndarray]] = {}

    def bandwidth(
        self,
        splits: list[Split],
        number: int,
        partitions: int,
        grid: Sequence[float],
        start: float | None = None,
        ratio: float | None = None,
    ) -> Trial:
        """Return the best trial over ``grid``, climbing from ``start``, by default Scott's."""
        cluster(splits, [number], partitions)
        rows, d = splits[0].x.shape
        start = scott(rows / number, d) if start is None else start

        def trial(h: float) -> Trial:
            return self.trial(splits, number, partitions, h, ratio)

        return _climb(trial, grid, min(grid, key=lambda h: abs(h - start)))

    def trial(
        self,
        splits: list[Split],
        number: int,
        partitions: int,
        h: float,
        ratio: float | None = None,
        by_condition: bool = False,
    ) -> Trial:
        """Return the trial of a law, kept in the curve."""
        frame = type(splits[0].frame).__name__
        rows = MANY if h == 1 else None  # one Gaussian per cluster: soon evaluated
        shape = (number, partitions, h, ratio, by_condition)
        nats = [split.log_likelihoods(split.fitted, split.law(*shape), rows) for split in splits]
        found = zip(splits, nats, strict=True)
        score = float(np.mean([split.log_likelihood(of_split) for split, of_split in found]))
        apart = None if ratio is None else ratio * h
        self.curve.append(Trial(frame, number, partitions, h, score, apart, by_condition))
        self.by_row[self.curve[-1]] = nats
        return self.curve[-1]

    def surpasses(self, splits: list[Split], one: Trial, other: Trial, errors: float = 1.0) -> bool:
        """Return whether a trial is better than another by so many standard errors of their difference.

        Row by row, of those that both have seen; after Breiman et al. 1984, Section 3.4.3.
        """
        differences, shares = [], []
        for split, ours, theirs in zip(splits, self.by_row[one], self.by_row[other], strict=True):
            rows = min(len(ours), len(theirs))
            differences.append(ours[:rows] - theirs[:rows])
            shares.append(split.shares(rows) / len(splits))
        nats, share = np.concatenate(differences), np.concatenate(shares)
        mean = share @ nats
        return bool(mean > errors * np.sqrt(np.sum((share * (nats - mean)) ** 2)))

    def regression(self, splits: list[Split], numbers: Sequence[int], start: int) -> Trial:
        """Return the best trial of one Gaussian per cluster of conditions: with one, linear regression.

        The fewest clusters that are not surpassed, in steps from the ``start``.
        """

        def trial(number: int) -> Trial:
            partitions = self.several if number > 1 else 1
            cluster(splits, [number], partitions, by_condition=True)
            return self.trial(splits, number, partitions, 1.0, by_condition=True)

        numbers = sorted({1, *numbers})
        at = numbers.index(start)
        best = first = trial(start)
        for number in numbers[at + 1 :]:
            if not self.surpasses(splits, other := trial(number), best):
                break
            best = other
        if best is not first:
            return best
        for number in numbers[:at][::-1]:
            if self.surpasses(splits, best, other := trial(number)):
                break
            best = other
        return best

    def condition(self, splits: list[Split], best: Trial) -> Trial:
        """Return the best trial with a bandwidth of their own along conditions, and ``h`` again beside it."""
        if not splits[0].given or best.h == 1:
            return best
        number, partitions = best.clusters, best.partitions

        def trial(ratio: float) -> Trial:
            return self.trial(splits, number, partitions, best.h, ratio)

        first = _climb(trial, RATIOS, 1.0)
        assert first.condition_h is not None
        ratio = first.condition_h / best.h
        if ratio == 1 or not self.surpasses(splits, first, best):
            return best
        return self.bandwidth(splits, number, partitions, BANDWIDTHS, best.h, ratio)

    def frames(self, by_frame: list[list[Split]], number: int) -> list[int]:
        """Return the numbers of the two best frames, given splits in each; of one if it surpasses the other.

        With conditions only the first that is not clearly surpassed.
        """
        given = by_frame[0][0].given
        number = min(number, FEW) if given else number
        cluster([split for splits in by_frame for split in splits], [number], self.several)
        found = [
            self.bandwidth(splits, number, self.several, BANDWIDTHS[2::2]) for splits in by_frame
        ]
        if given:
            found += [self.regression(splits, [number], number) for splits in by_frame]
        scores = np.reshape([best.log_likelihood for best in found], (-1, len(by_frame))).max(0)
        if given:
            return [int(np.argmax(scores >= scores.max() - CLEARLY))]
        first, second = map(int, np.argsort(-scores, kind="stable")[:2])
        clear = self.surpasses(by_frame[0], found[first], found[second], errors=3.0)
        return [first] if clear else [first, second]

    def clusters(self, splits: list[Split], n: int, guess: int) -> Trial:
        """Return the best trial over numbers of clusters, an optimum so broad that one partition shows it.

        Of small tables, not so broad, several partitions do.
        """
        several = self.several if n <= SMALL else 1
        most = max(1, min(self.auto.most_clusters, n // 10))
        guess = min(guess, FEW) if splits[0].given else guess
        numbers = sorted({int(np.clip(round(guess * 2.0**k), 1, most)) for k in range(-8, 9)})
        start, before = min(guess, most), len(self.curve)
        if len(splits) <= 2:  # the first three clusterings, else one core's work each, side by side
            middle = numbers.index(start)
            cluster(splits, numbers[max(0, middle - 1) : middle + 2], 1)

        def trial(number: int) -> Trial:
            partitions = several if number > 1 else 1  # one cluster is the same in all of them
            return self.bandwidth(splits, number, partitions, BANDWIDTHS[1::2])

        best = _climb(trial, numbers, start)
        if not splits[0].given:
            return best
        # Of x given c little may be left for clusters to tell, and their covariances are the noisier the more
        # there are: the fewest that are not surpassed.
        tried = [t for t in self.curve[before:] if not self.surpasses(splits, best, t)]
        fewest = min(tried, key=lambda t: (t.clusters, -t.log_likelihood))
        plain = self.regression(splits, numbers, start)
        return fewest if self.surpasses(splits, fewest, plain) else plain

    def partitions(self, splits: list[Split], n: int, first: Trial) -> Trial:
        """Return the best trial with as many partitions as pay, of as many clusters as the ``first``."""
        partitions = self.auto.partitions or (8 if SMALL < n <= 6000 else 4)
        if splits[0].given and first.h == 1:
            return first
        if first.clusters == 1:
            partitions = 1
        if hasty := len(splits[0].x) > FITTING_ROWS:  # the clusters of the trials so far
            for split in splits:
                split.found.clear()
                split.clusters.clear()
            cluster(splits, [first.clusters], partitions, thorough=True)
        best = self.bandwidth(splits, first.clusters, partitions, BANDWIDTHS, first.h)
        if self.auto.partitions is not None:
            return best
        if hasty:
            first = self.bandwidth(splits, first.clusters, 1, BANDWIDTHS, best.h)
        fewer = [first]  # one clustering may be a better one than the rest
        if 0 < (whole := self.auto.most_rows // n) < partitions:  # of which none leaves rows out
            fewer.append(self.bandwidth(splits, first.clusters, whole, BANDWIDTHS, best.h))
        other = max(fewer, key=lambda trial: trial.log_likelihood)
        return other if other.log_likelihood > best.log_likelihood + CLEARLY else best


def _held_out(
    generator: np.random.Generator, n: int, folds: int, groups: np.ndarray | None, most: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return rows in random order, and for every fold which of them are held out: a fifth, whole groups.

    A fold of large groups with more than half of the rows is left out.
    """
    if groups is None:
        order = generator.permutation(n)
        return order, [np.isin(np.arange(n), order[k::5][:most]) for k in range(folds)]
    sizes = np.bincount(groups)
    order = generator.permutation(len(sizes))
    fifth, fifths = np.empty(len(sizes), int), [(0, k) for k in range(5)]  # a heap of (rows, fifth)
    # The largest first, each to the emptiest fifth.
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        rows, fifth[group] = fifths[0]
        heapq.heapreplace(fifths, (rows + int(sizes[group]), int(fifth[group])))
    held = [mask for k in range(5) if 0 < (mask := fifth[groups] == k).sum() <= n / 2]
    if not held:
        raise ValueError("groups: expected two groups at least, of rows that differ, got one")
    return generator.permutation(n), held[:folds]


def choose(
    key: Array,
    tables: Sequence[Placed],
    auto: Auto,
    frames: tuple[FrameKind, ...],
    rows: int,
) -> Choice:
    """Return the best law found for one of the ``tables`` (n, d), in blocks of at most ``rows`` of its rows.

    Atoms among other values keep their mass in frames that are calibrated: where there are any, others are no
    candidates. The curve is of frames as fitted; the reported likelihood is of the calibrated one.

    Raises:
        ValueError: If there are fewer than five rows (a fifth is held out), or a column is constant.
    """
    x, weights = tables[0].x, tables[0].weights
    n, d = x.shape
    if n < 5:
        raise ValueError(f"x: Auto() needs at least 5 rows of positive weight, got {n}")
    if tables[0].given and n < 1.5 * d:
        raise ValueError(
            f"condition: Auto() needs at least {int(np.ceil(1.5 * d))} rows of {d} columns, got {n}"
        )
    for j in np.flatnonzero(np.ptp(x, axis=0) == 0):
        raise ValueError(f"x: column {j} is constant ({x[0, j]:g}); Auto() cannot choose its law")
    order_key, frame_key, split_key, layout_key = jax.random.split(key, 4)
    folds = 1 if n > 5000 else 2 if n > SMALL else 5
    most = held_out(tables[0].given, d)
    order, held = _held_out(host_generator(order_key), n, folds, tables[0].groups, most)
    folds = len(held)
    guess = min(usual_clusters(1 / np.sum(weights**2), d), auto.most_clusters)

    def splits_of(key: Array, rows: np.ndarray, candidate: tuple[Placed, Any]) -> list[Split]:
        keys, (table, frame) = jax.random.split(key, folds), candidate
        return [
            Split(key, table.of_rows(rows), part[rows], frame, auto.most_rows)
            for key, part in zip(keys, held, strict=True)
        ]

    if any(column is not None and column.has_bare_atoms for column in tables[0].columns):
        frames = tuple(frame for frame in frames if frame.spreads_ties) or frames
    search, candidates = _Search(auto), [(table, frame) for table in tables for frame in frames]
    kept = [0]
    if len(candidates) > 1:  # on part of the rows: their difference is large or does not matter
        # The same folds and keys for every candidate: only frames and places of ties differ.
        by_frame = [splits_of(frame_key, order[:4000], candidate) for candidate in candidates]
        kept = search.frames(by_frame, min(guess, 30))
    searched = np.arange(n) if n <= SEARCHED_ROWS else order[:SEARCHED_ROWS]
    found = []
    for number in kept if n <= TWICE else kept[:1]:
        splits = splits_of(split_key, searched, candidates[number])
        winner = search.partitions(splits, n, search.clusters(splits, n, guess))
        found.append((search.condition(splits, winner), splits, candidates[number][0]))
    winner, splits, table = max(found, key=lambda one: one[0].log_likelihood)
    frame, x = splits[0].frame, table.x

    h = float(np.clip(winner.h / auto.closeness, 1e-3, 1.0))
    ratio = None if winner.condition_h is None else winner.condition_h / winner.h
    apart = None if ratio is None else ratio * h
    number, partitions, by_condition = winner.clusters, winner.partitions, winner.by_condition
    kernel = Local(h, number, partitions, auto.most_rows, apart, by_condition)
    fitted = frame.fit(x, weights)
    whole = table.within(fitted)
    if len(splits[0].x) < FITTING_ROWS:
        law = kernel.lay_out(layout_key, whole, rows)
    else:
        found = splits[0].found[number, by_condition][:partitions]
        own, split = rows_of_partitions(layout_key, n, partitions), splits[0]

        def seen(part: Any) -> np.ndarray:
            return split.seen(split.fitted.forward(x[part]), by_condition)

        every = seen(own[0]) if isinstance(own[0], slice) else None  # all partitions see all rows

        def assigned(one: tuple[Any, Clustering]) -> np.ndarray:
            part, clustering = one
            strata = None if table.strata is None else table.strata[part]
            return clustering.assign(seen(part) if every is None else every, strata)

        labels = side_by_side(assigned, zip(own, found, strict=True))
        law = kernel.from_labels(layout_key, whole, own, labels, rows)
    likelihoods, shares = [], []
    for split in splits:
        trained = split.law(number, partitions, h, ratio, by_condition)
        apart = calibrated(frame, split.fitted, trained, split.training, split.weights)
        likelihoods.append(split.log_likelihood(split.log_likelihoods(apart, trained)))
        shares.append(split.memorization(apart, trained))
    evidence = dict(
        log_likelihood=float(np.mean(likelihoods)),
        memorization=float(np.mean(shares)),
        curve=search.curve,
    )
    made = calibrated(frame, fitted, law, x, weights)
    return Choice(table, frame, kernel, made, law, evidence)
