r"""Kernels: which Gaussian each datum carries, so that the data law is ``sum_i w_i N(m_i, C)``.

| kernel         | C      | law                                         |
|----------------|--------|---------------------------------------------|
| `Dirac()`      | 0      | the empirical measure (arXiv 2310.14458)    |
| `Isotropic(h)` | h^2 I  | kernel density estimate                     |

A kernel is a frozen value; ``kernel.blocks(x, weights, rows)`` lays the data out for the streaming
evaluation of ``jet``. It runs once per mixture, on the host, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mcscore.jet import Blocks

Number = Any  # a float to the user, a tracer under jit


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels: ``blocks`` lays out the data, ``width`` is their reference width."""

    @property
    def width(self) -> Any:
        """Reference width ``h``: where the canonical clock stops to resolve the law."""
        raise NotImplementedError

    def blocks(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return ``x`` (n, d) in blocks of at most ``rows`` rows, arrays in float64.

        ``weights`` (n,) are positive and sum to one.
        """
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dirac(Kernel):
    """The empirical measure, as in the paper. Its flow needs a schedule with ``sigma(0) > 0``.

    >>> Dirac().width
    0.0
    """

    @property
    def width(self) -> Any:
        """Zero: the law has no width of its own."""
        return 0.0

    def blocks(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return balanced blocks with zero variance."""
        return balanced_blocks(x, weights, rows, 0.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Isotropic(Kernel):
    """A Gaussian of standard deviation ``h`` around every datum: a kernel density estimate.

    Args:
        h: Bandwidth, in the units of the mixture's coordinates. Positive; 0 is ``Dirac()``.

    >>> Isotropic(0.1).width
    0.1
    """

    h: Number

    @property
    def width(self) -> Any:
        """The bandwidth."""
        return self.h

    def blocks(self, x: np.ndarray, weights: np.ndarray, rows: int) -> Blocks:
        """Return balanced blocks with variance ``h^2``."""
        if not self.h > 0:
            raise ValueError(f"h: expected a positive bandwidth, got {self.h}")
        return balanced_blocks(x, weights, rows, self.h**2)


def balanced_blocks(x: np.ndarray, weights: np.ndarray, rows: int, variance: float) -> Blocks:
    """Return blocks of neighbouring rows, equal in size up to one row, with isotropic variance."""
    parts = bisect(x, np.arange(len(x)), rows)
    return pack(x, weights, parts, np.full((len(parts), x.shape[1]), variance))


def bisect(x: np.ndarray, index: np.ndarray, rows: int) -> list[np.ndarray]:
    """Halve the widest column until every part has at most ``rows`` rows (a balanced k-d tree).

    Neighbouring rows in one block keep the block's radius, and with it float32's loss, small.
    """
    if len(index) <= rows:
        return [index]
    part = x[index]
    half = len(index) // 2
    order = np.argpartition(part[:, np.argmax(np.ptp(part, axis=0))], half)
    return bisect(x, index[order[:half]], rows) + bisect(x, index[order[half:]], rows)


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
