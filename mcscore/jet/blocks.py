r"""Blocks: how a Gaussian mixture with one component per row is stored, and how it is evaluated.

The rows of a block share a center ``c``, an orthonormal basis ``R`` and the variances ``v`` of their kernel
along it; a row is kept as ``R^T (m - c)``, so that it is small and loses no digits in float32. A block is the
unit of memory (one is looked at at a time), of precision, and of parallelism.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mcscore._arrays import pytree, shapes
from mcscore._validation import at_least, of_type
from mcscore.jet import native
from mcscore.parallel import Over


@pytree(static=["given"])
@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of the mixture, stored block by block.

    With ``given`` columns the law is one of the others, every query with its own values ``c`` of those (see
    ``conditioning.divided``): a query is ``(x_t, c)``, ``c`` neither scaled nor noisy, a density is that of
    ``(x_t, c)``, and fields are of ``x_t``. A basis is then any matrix whose lower left part carries what a
    row of the block says of ``x`` given ``c``; along the given columns variances are 1.

    Attributes:
        rows: ``m - c`` in the block's basis (k, r, d), zero where padded.
        log_weights: Log of each row's weight in the whole mixture (k, r), ``-inf`` where padded.
        centers: Each block's center (k, d).
        bases: Orthonormal columns (k, d, d), or None for the identity (isotropic kernels).
        variances: Kernel variances along the basis (k, d).
        given: How many columns, the last ones, are conditions.
    """

    rows: Any
    log_weights: Any
    centers: Any
    bases: Any
    variances: Any
    given: int = 0
    __repr__ = shapes

    @property
    def diffused(self) -> int:
        """Number of columns that are no conditions."""
        return self.rows.shape[-1] - self.given


@dataclass(frozen=True)
class Evaluation:
    """How a mixture is evaluated: no number changes but by rounding, only time and memory.

    It travels with the mixture and is part of what a compiled program belongs to. By default as fits a
    CPU: tile times block within its caches, yet work enough in every step of the scan over blocks.

    Args:
        queries: Queries evaluated together (a tile), at most, in XLA.
        weights: Posterior weights, one per query and row of a block, held at once in XLA, about; but never
            so few that a tile has less than 1,024 queries.
        careful: Compute in float64 where float32 would lose digits (see ``stream``).
        kernel: ``"xla"``, or ``"native"``, the C++ kernel for float32 on CPUs, where it was built; or one of
            ``jet.native.targets()``, the instructions it is to use. By default what is fastest.
        negligible: The native kernel leaves out rows that together have at most this share of a query's
            density, provably, and replaces the rows of a block of up to three columns by fewer points where
            that moves its density by no more than this share of its mass; 0 for neither.
        over: The mesh and its axis over which the blocks are divided, see ``shard``.

    >>> Evaluation().tile(rows=1024), Evaluation(queries=128).tile(rows=1024)
    (1024, 128)
    """

    queries: int = 8192
    weights: int = 2**20
    careful: bool = True
    kernel: str | None = None
    negligible: float = 1e-6
    over: Over | None = None

    def __post_init__(self) -> None:
        at_least(1, queries=self.queries)
        at_least(0, weights=self.weights)
        of_type(bool, "True", careful=self.careful)
        if self.kernel not in (None, "xla", *native.names()):
            known = ", ".join(map(repr, ("xla", *native.names())))
            raise ValueError(
                f"kernel: expected one of {known} on this machine, got {self.kernel!r}"
            )
        if not 0 <= self.negligible < 1:
            raise ValueError(
                f"negligible: expected a share of at least 0, below 1, got {self.negligible}"
            )

    @classmethod
    def on(cls, device: Any) -> Evaluation:
        """Return what suits a device; one with its own memory takes larger tiles."""
        if device.platform == "cpu":
            return cls()
        memory = (device.memory_stats() or {}).get("bytes_limit", 2**34)
        # A query with 1,024 rows in 2**20 bytes: weights and their copies take a hundredth of them.
        return cls(queries=16_384, weights=memory // 2**10)

    def tile(self, rows: int) -> int:
        """Return how many queries are evaluated together with blocks of ``rows`` rows."""
        return min(self.queries, max(1024, self.weights // rows))
