r"""Choosing the law: frame, number of clusters and bandwidth by held-out log-likelihood.

For a split of the rows, everything that is fitted (frame, clusters, covariances, centres) sees the
training part only; the held-out part is scored in the user's units, so that frames compare too. Small
tables are split several times. The chosen law is then laid out with all rows, each assigned to the
clusters already found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mcscore.frames import Affine, Gaussianize
from mcscore.jet import Blocks, stream
from mcscore.kernels import MOST_ROWS, Kernel, Local, cluster, clustered_blocks

BANDWIDTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SMALL = 1500  # rows: below, likelihoods are too noisy for fine choices
NARROWER, TOLERANCE = 0.9, 0.02  # see ``choose``; nats per column


@dataclass(frozen=True)
class Auto(Kernel):
    """Choose frame, number of clusters and bandwidth of a `Local` kernel by held-out likelihood.

    Args:
        closeness: Divides the chosen bandwidth: above 1 samples stay closer to the data than the
            likelihood asks for, below 1 they are smoother.
        frames: Candidates, where ``mixture`` is given no frame.
        partitions: Independent clusterings whose laws are averaged; by default 8 for 1,500 to 6,000
            rows, which profit most and cost least, else 4.
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
    """The chosen law, ready to be laid out with all rows, and the evidence behind it.

    Attributes:
        frame: The chosen frame, not yet fitted.
        kernel: The chosen kernel.
        labels: Each row's cluster, for every partition.
        curve: Every trial.
        log_likelihood: Of the held-out rows under the law of the others, mean in nats.
        training_law: The law of the training part, in its own frame's coordinates.
        training: The training part there.
        held: The held-out part there.
    """

    frame: Any
    kernel: Local
    labels: list[np.ndarray]
    curve: list[Trial]
    log_likelihood: float
    training_law: Blocks
    training: np.ndarray
    held: np.ndarray


class _Split:
    """A training and a held-out part in one frame, with the clusterings found so far."""

    def __init__(
        self, x: np.ndarray, weights: np.ndarray, held: np.ndarray, frame: Any, auto: Auto
    ):
        self.fitted = frame.fit(x[~held], weights[~held])
        self.x, self.weights = self.fitted.forward(x[~held]), weights[~held] / weights[~held].sum()
        self.held = self.fitted.forward(x[held])
        self.share = weights[held] / weights[held].sum()
        self.jacobian = self.share @ np.asarray(self.fitted.log_det(jnp.asarray(x[held])))
        self.auto, self.clusters = auto, {}

    def assign(self, blocks: int, partition: int) -> Any:
        if (blocks, partition) not in self.clusters:
            self.clusters[blocks, partition] = cluster(self.x, blocks, self.auto.seed + partition)
        return self.clusters[blocks, partition]

    def law(self, blocks: int, partitions: int, h: float) -> Blocks:
        """Return the law of the training part."""
        labels = [self.assign(blocks, k)(self.x) for k in range(partitions)]
        laid = clustered_blocks(
            self.x, self.weights, labels, h, 1024, most_rows=self.auto.most_rows
        )
        return jax.tree.map(lambda a: jnp.asarray(a, float), laid)

    def score(self, blocks: int, partitions: int, bandwidths: tuple[float, ...]) -> np.ndarray:
        """Return the mean held-out log-likelihood for each bandwidth."""
        held = jnp.asarray(self.held, float)
        laws = (self.law(blocks, partitions, h) for h in bandwidths)
        log_p = np.stack([np.asarray(_log_density(held, law), np.float64) for law in laws])
        return np.maximum(log_p, -1e4) @ self.share + self.jacobian


@jax.jit
def _log_density(x: jax.Array, blocks: Blocks) -> jax.Array:
    one = jnp.ones((), x.dtype)
    return stream(x, one, jnp.zeros_like(one), blocks).log_p


def choose(x: np.ndarray, weights: np.ndarray, auto: Auto, frames: tuple[Any, ...]) -> Choice:
    """Return the best law found for the rows ``x`` (n, d).

    The bandwidth is the best, or a tenth less where that costs under 0.02 nats per column: the likelihood
    is flat there, and classifiers tell draws of the narrower law from data less well. (Not for
    tables of fewer than 1,500 rows, whose likelihoods are too noisy to tell.)
    """
    n, d = x.shape
    rng = np.random.default_rng(auto.seed)
    order = rng.permutation(n)
    folds = 1 if n > 5000 else 2 if n > SMALL else 5
    held = [np.isin(np.arange(n), order[k::5][:3000]) for k in range(folds)]
    curve: list[Trial] = []

    def trial(
        splits: list[_Split], frame: Any, blocks: int, partitions: int, bandwidths: Any
    ) -> float:
        scores = np.mean([split.score(blocks, partitions, bandwidths) for split in splits], 0)
        name = type(frame).__name__
        curve.extend(
            Trial(name, blocks, partitions, *p)
            for p in zip(bandwidths, scores.tolist(), strict=True)
        )
        return scores.max()

    frame = frames[0]
    guess = int(np.clip(np.sqrt(n / d), 1, auto.most_blocks))
    few = max(1, min(guess, 30))
    if len(frames) > 1:  # on part of the rows: the frames' difference is large or does not matter
        some = order[:4000]
        part = [_Split(x[some], weights[some], held[0][some], frame, auto) for frame in frames]
        ranks = [trial([s], f, few, 1, BANDWIDTHS[2::2]) for s, f in zip(part, frames, strict=True)]
        frame = frames[int(np.argmax(ranks))]
    splits = [_Split(x, weights, part, frame, auto) for part in held]

    # Climb over the number of clusters with one partition: its optimum is broad.
    tried: dict[int, float] = {}
    best, step = guess, 2.0
    tried[best] = trial(splits, frame, best, 1, BANDWIDTHS[1::2])
    for direction in (1 / step, step):
        while True:
            blocks = int(np.clip(round(best * direction), 1, min(auto.most_blocks, n // 10)))
            if blocks in tried or blocks < 1:
                break
            tried[blocks] = trial(splits, frame, blocks, 1, BANDWIDTHS[1::2])
            if tried[blocks] <= tried[best]:
                break
            best = blocks

    start = len(curve)
    partitions = auto.partitions or (8 if SMALL < n <= 6000 else 4)
    partitions = partitions if best > 1 else 1  # one cluster is the same in every partition
    trial(splits, frame, best, partitions, BANDWIDTHS)
    winner = max(curve[start:], key=lambda point: point.log_likelihood)
    if n > SMALL:
        trial(splits, frame, best, partitions, (NARROWER * winner.h,))
        if winner.log_likelihood - curve[-1].log_likelihood < TOLERANCE * d:
            winner = curve[-1]
    split = splits[0]
    everywhere = split.fitted.forward(x)
    labels = [split.assign(best, k)(everywhere) for k in range(partitions)]
    h = float(np.clip(winner.h / auto.closeness, 1e-3, 1.0))
    return Choice(
        frame,
        Local(h, best, partitions, auto.most_rows, auto.seed),
        labels,
        curve,
        winner.log_likelihood,
        split.law(best, partitions, h),
        split.x,
        split.held,
    )
