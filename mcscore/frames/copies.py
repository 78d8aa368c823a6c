"""Equal rows merged into weights, so that no copy stands on both sides of a split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mcscore.frames.lattice import lattice_of

COMMON = 0.05  # of all rows: that many equal ones are no copies but a value that the columns share


class Merged(NamedTuple):
    """The rows that stay, their weights, and the share of all rows that had an equal one.

    ``kept`` are row numbers (m,), in their order, ``weights`` (m,) sum to one.
    """

    kept: np.ndarray
    weights: np.ndarray
    share: float


def merged(x: np.ndarray, weights: np.ndarray) -> Merged:
    """Return the different rows of ``x`` (n, d), the weights (n,) of equal ones added up.

    Rows that are equal because their columns have few values each are no copies, and stay: those whose
    every entry other rows have too or is one of few steps, in a single column those on a lattice or an atom,
    and rows that a twentieth of the table equals.

    >>> merged(np.array([[0.1, 2.5], [0.7, 1.5], [0.1, 2.5]]), np.full(3, 1 / 3)).weights
    array([0.66666667, 0.33333333])
    """
    n, d = x.shape
    everything = Merged(np.arange(n), weights, 0.0)
    hashes = _hashes(x)
    ordered = np.sort(hashes)
    if (ordered[1:] != ordered[:-1]).all():
        return everything
    first, group, counts = _groups(x, hashes)
    different = x[first]
    several = counts > 1
    if d == 1:
        column = different[:, 0]
        common = counts >= max(5, 0.01 * n)
        order = np.argsort(column)
        if lattice_of(column[order], counts[order])[1]:
            common[:] = True
    else:
        common = np.ones(len(first), bool)
        for column in different.T:
            values, value, times = np.unique(column, return_inverse=True, return_counts=True)
            few = len(values) <= len(first) / 2 and lattice_of(values, times)[1]
            common &= (times[value] > 1) | bool(few)
        common |= counts >= max(5, COMMON * n)
    copied = several & ~common
    stays = ~copied[group]
    stays[first] = True
    total = np.bincount(group, weights)
    summed = np.where(copied[group], total[group], weights)
    share = float(counts[copied].sum() / n)
    return Merged(np.flatnonzero(stays), summed[stays], share)


def _hashes(x: np.ndarray) -> np.ndarray:
    """Return a number for each row (n,), the same for equal ones, and hardly ever for others."""
    factors = np.random.default_rng(0x6D63).integers(1, 2**63, x.shape[1], dtype=np.uint64) | 1
    hashes = np.zeros(len(x), np.uint64)
    for column, factor in zip(x.T, factors, strict=True):
        bits = _bits(column)
        mixed = (bits ^ (bits >> np.uint64(29))) * factor  # modulo 2^64
        hashes ^= mixed ^ (mixed >> np.uint64(32))
    return hashes


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x + 0.0).view(np.uint64)  # no -0.0


def _groups(x: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of every group of equal rows the first row, (g,), every row's group (n,), and sizes (g,)."""
    _, first, group, counts = np.unique(
        hashes, return_index=True, return_inverse=True, return_counts=True
    )
    if not np.array_equal(_bits(x), _bits(x[first[group]])):  # one hash of different rows
        _, first, group, counts = np.unique(
            x + 0.0, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
    return first, group.reshape(-1), counts
