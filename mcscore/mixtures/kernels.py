r"""Kernels: which Gaussian each datum carries, so that the data law is ``sum_i w_i N(m_i, C)``.

| kernel                          | C                 | law                                        |
|---------------------------------|-------------------|--------------------------------------------|
| `Dirac()`                       | 0                 | the empirical measure (arXiv 2310.14458)   |
| `Isotropic(h)`                  | h^2 I             | kernel density estimate                    |
| `Whitened(h)`                   | h^2 Cov(x)        | the same in whitened coordinates           |
| `Local(h, clusters, partitions)`| h^2 Cov(cluster)  | one covariance per cluster of rows         |

The last two take their bandwidth from Scott's rule (`scott`) where none is given.

A kernel may pull rows towards the mean of their cluster, ``m_i = mu + A (x_i - mu)``, with ``A`` such
that ``A S A' + C = S``: rows and kernel together keep the cluster's covariance ``S`` exactly, wherever
the kernel is not wider than the cluster. `Local` always does, up to the sampling of rows that it leaves
out: ``h -> 0`` is the data, ``h = 1`` a Gaussian mixture. Its independent partitions of the same rows stand
side by side; their laws average.

A kernel is a frozen value and answers two questions, on the host and in float64: ``choose`` fits a frame
and whatever is left open, ``lay_out`` arranges the rows for the streaming evaluation of ``jet``. ``Auto``
(in ``selection``) answers both by held-out likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, pytree
from mcscore._numbers import described
from mcscore._validation import Table, at_least
from mcscore.frames import Frame, FrameKind, Identity, Placed
from mcscore.jet import Blocks
from mcscore.mixtures.clustering import clusterings
from mcscore.mixtures.covariances import (
    clustered_blocks,
    pull,
    relative,
    shrunk_clusters,
    stretched,
)
from mcscore.mixtures.layout import balanced_blocks, calibrated

MOST_ROWS = 1_000_000  # rows stored at most
ENOUGH = 1_000_000  # rows of a partition: more would not tell its clusters better
Number = Any  # to the user a number, or None: by rule; a tracer under jit


class Choice(NamedTuple):
    """A law laid out with all rows, nothing left open, and the evidence behind it.

    Attributes:
        table: The table, in the chosen of the ways that its ties were placed.
        frame: The chosen frame.
        kernel: The chosen kernel.
        fitted: The frame fitted to all rows.
        blocks: The law of all rows, arrays in float64.
        evidence: ``log_likelihood``, ``memorization`` and ``curve`` of the `Report`, where measured.
    """

    table: Placed
    frame: FrameKind
    kernel: Kernel
    fitted: Frame
    blocks: Blocks
    evidence: dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels.

    ``spreads_ties`` says whether ties are to be spread, where the frame leaves it to the kernel.
    """

    has_density: ClassVar[bool] = True
    spreads_ties: ClassVar[bool] = False

    def usual_frames(self, table: Table) -> tuple[FrameKind, ...]:
        """Return the frames to choose from where the user names none."""
        table.warn_of_units()
        return (Identity(),)

    def by_rule(self, rows: float, dimension: int) -> Kernel:
        """Return the kernel for so many (effective) rows of so many columns, nothing left to a rule."""
        return self

    def choose(
        self,
        key: Array,
        tables: Sequence[Placed],
        frames: tuple[FrameKind, ...],
        rows: int,
    ) -> Choice:
        """Return the law of a table (n, d) in the best of ``frames``, here the first.

        ``tables`` are the ways in which its ties were placed, side by side first.
        """
        kernel = self.by_rule(1 / np.sum(tables[0].weights ** 2), tables[0].x.shape[1])
        table = tables[kernel.placing(tables)]
        frame = frames[0].with_breaks(table.breaks)
        fitted = frame.fit(table.x, table.weights)
        blocks = kernel.lay_out(key, table.within(fitted), rows)
        made = calibrated(frame, fitted, blocks, table.x, table.weights)
        return Choice(table, frame, kernel, made, blocks, {})

    def placing(self, tables: Sequence[Placed]) -> int:
        """Return the number of the table whose ties are placed as suits the kernel."""
        return 0

    def lay_out(self, key: Array, table: Placed, rows: int) -> Blocks:
        """Return the table, ``x`` in the law's coordinates, in float64 blocks of at most ``rows`` rows."""
        raise NotImplementedError


@pytree()
@dataclass(frozen=True)
class Dirac(Kernel):
    """The empirical measure, as in the paper. Its flow needs a schedule with ``sigma(0) > 0``.

    >>> Dirac()
    Dirac()
    """

    has_density: ClassVar[bool] = False

    def usual_frames(self, table: Table) -> tuple[FrameKind, ...]:
        """Return the identity: points have no width that units could distort."""
        return (Identity(),)

    def lay_out(self, key: Array, table: Placed, rows: int) -> Blocks:
        """Return balanced blocks with zero variance."""
        return balanced_blocks(table.x, table.weights, rows, 0.0)


@pytree()
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

    def lay_out(self, key: Array, table: Placed, rows: int) -> Blocks:
        """Return balanced blocks with variance ``h^2``."""
        _check_bandwidth(self.h)
        x, weights = table.x, table.weights
        if self.preserve:
            center = weights @ x
            centered = x - center
            covariance = (weights * centered.T) @ centered
            matrix = pull(*relative(self.h**2 * np.eye(x.shape[1]), covariance))
            x = center + centered @ matrix.T
        return balanced_blocks(x, weights, rows, float(self.h) ** 2)


@pytree()
@dataclass(frozen=True)
class Whitened(Kernel):
    """``h`` times the data's own standard deviation in every direction.

    Args:
        h: Bandwidth relative to the data's covariance; by default Scott's rule.
        preserve: Pull the rows towards their mean so that the law keeps the data's covariance.

    >>> Whitened(0.3)
    Whitened(h=0.3, preserve=False)
    """

    h: Number = None
    preserve: bool = field(default=False, metadata={"static": True})

    def by_rule(self, rows: float, dimension: int) -> Whitened:
        """Return the kernel with Scott's bandwidth if it has none."""
        return replace(self, h=scott(rows, dimension) if self.h is None else self.h)

    def lay_out(self, key: Array, table: Placed, rows: int) -> Blocks:
        """Return blocks of neighboring rows that share one basis and its variances."""
        _check_bandwidth(self.h)
        x, weights = table.x, table.weights
        clusters = shrunk_clusters(x, weights, [np.zeros(len(x), int)])
        return clustered_blocks(key, x, weights, clusters, self.h, rows, self.preserve)


@pytree()
@dataclass(frozen=True, repr=False)
class Local(Kernel):
    """``h`` times the standard deviations of the datum's own cluster, whose covariance is kept.

    Clusters come from a Gaussian mixture fitted by EM to at most 60,000 rows, started from k-means++;
    every row's is drawn from its posterior. Covariances of small clusters are shrunk
    (Ledoit-Wolf).

    Args:
        h: Share of each cluster's spread that is kernel, in ``(0, 1]``: towards 0 the law copies the
            data, 1 is a Gaussian mixture; by default Scott's rule for the rows stored of an average cluster.
        clusters: How many per partition; by default ``sqrt(n / d)``, where `Auto` starts to search.
        partitions: Independent clusterings whose laws are averaged; each of a part of the rows where that
            leaves it a million.
        most_rows: Rows stored over all partitions, at most. Beyond, each cluster keeps a sample of its
            own rows, of equal size for all and with the cluster's whole mass and shape: the law costs
            that much less to evaluate, for a little likelihood. So it does where a wide kernel blurs
            the rows: as many are kept as give a Gaussian cluster's law within about 0.002 nats.
        condition_h: The share along columns that are conditions; by default ``h``.
        by_condition: Cluster the conditions alone: with ``h=1`` the others are a mixture of linear
            regressions on them, which tells a weak signal from noise where clusters of all columns do not.

    >>> Local(0.5, clusters=10)
    Local(h=0.5, clusters=10, partitions=4, most_rows=1000000)
    """

    spreads_ties: ClassVar[bool] = True
    h: Number = None
    clusters: Number = field(default=None, metadata={"static": True})
    partitions: int = field(default=4, metadata={"static": True})
    most_rows: int = field(default=MOST_ROWS, metadata={"static": True})
    condition_h: Number = None
    by_condition: bool = field(default=False, metadata={"static": True})

    def __repr__(self) -> str:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        for option in ("condition_h", "by_condition"):
            if named[option] is None or named[option] is False:
                del named[option]
        return f"Local({', '.join(f'{name}={value!r}' for name, value in named.items())})"

    def placing(self, tables: Sequence[Placed]) -> int:
        """Return the last if its strata are no more than the clusters."""
        strata = tables[-1].strata
        return -1 if strata is not None and strata.max() < self.clusters else 0

    def by_rule(self, rows: float, dimension: int) -> Local:
        """Return the kernel with the usual number of clusters and Scott's bandwidth if it has none."""
        clusters = usual_clusters(rows, dimension) if self.clusters is None else self.clusters
        stored = min(rows, self.most_rows / max(self.partitions, 1))
        h = scott(stored / max(clusters, 1), dimension) if self.h is None else self.h
        return replace(self, h=h, clusters=clusters)

    def lay_out(self, key: Array, table: Placed, rows: int) -> Blocks:
        """Return each cluster's rows in blocks that share its basis and variances."""
        _check_bandwidth(self.h)
        if self.h > 1:
            raise ValueError(f"h: expected at most 1, a Gaussian mixture, got {self.h}")
        at_least(1, clusters=self.clusters, partitions=self.partitions, most_rows=self.most_rows)
        *keys, thinning = jax.random.split(key, self.partitions + 1)
        x, weights = table.x, table.weights
        if self.by_condition and table.along is None:
            raise ValueError("by_condition: expected a law with a condition, got none")
        seen = x @ table.along if self.by_condition else x
        own = rows_of_partitions(thinning, len(x), self.partitions)
        strata = [None if table.strata is None else table.strata[part] for part in own]
        jobs = (
            (seen[part], weights[part], self.clusters, key, among)
            for part, key, among in zip(own, keys, strata, strict=True)
        )
        labels = [found.labels for found in clusterings(jobs)]
        return self.from_labels(thinning, table, own, labels, rows)

    def from_labels(
        self,
        key: Array,
        table: Placed,
        own: Sequence[Any],
        labels: Sequence[np.ndarray],
        rows: int,
    ) -> Blocks:
        """Return the blocks of clusters that are known: for each partition, those of its ``own`` rows."""
        every = np.full((len(own), len(table.x)), -1, np.int32)
        for of_partition, part, label in zip(every, own, labels, strict=True):
            of_partition[part] = label
        clusters = shrunk_clusters(table.x, table.weights, list(every))
        stretch = None
        if self.condition_h is not None and table.along is not None:
            _check_bandwidth(self.condition_h)
            stretch = stretched(table.along, self.condition_h / self.h)
        return clustered_blocks(
            key, table.x, table.weights, clusters, self.h, rows,
            most_rows=self.most_rows, stretch=stretch,
        )  # fmt: skip


def rows_of_partitions(key: Array, n: int, partitions: int) -> list[Any]:
    """Return which rows each partition clusters: all, or parts of its own where these are large enough."""
    if n < partitions * ENOUGH:
        return [slice(None)] * partitions
    order = host_generator(jax.random.fold_in(key, 1)).permutation(n)
    return np.array_split(order, partitions)


def usual_clusters(n: float | int, d: int) -> int:
    """Return ``sqrt(n / d)``, from 1 to 160: as many clusters as each has rows per column."""
    return int(np.clip(np.sqrt(n / d), 1, 160))


def scott(rows: float | int, dimension: int) -> float:
    """Return Scott's rule ``rows^(-1 / (dimension + 4))``: a bandwidth, relative to the rows' own spread.

    Scott (1992), Multivariate Density Estimation, eq. 6.42, for ``rows`` (at least one) of a Gaussian.
    """
    return float(max(rows, 1.0) ** (-1 / (dimension + 4)))


def _check_bandwidth(h: Any) -> None:
    number = isinstance(h, int | float | np.number | np.ndarray | jax.Array)
    if not number or np.ndim(h) or not 0 < h < 1e19:  # its square is finite in float32
        raise ValueError(f"h: expected a positive bandwidth, got {described(h)}")
