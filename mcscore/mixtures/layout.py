"""Rows packed in blocks for the streaming evaluation of ``jet``: neighbors together, little padding.

And what a law that is laid out knows of itself: its moments, and the frame in which its marginals are the
data's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jax.nn import logsumexp

from mcscore._arrays import on_device
from mcscore.frames.frame import Frame, FrameKind
from mcscore.jet.blocks import Blocks
from mcscore.jet.conditioning import tails

SMALL = 1500  # rows: below, marginals and likelihoods are too noisy for fine choices
CALIBRATING_ROWS = 200_000  # of larger laws, a part of the rows gives the marginals
LEAF = 64  # rows that the native kernel leaves out together (jet/native.h)


def balanced_blocks(x: np.ndarray, weights: np.ndarray, rows: int, variance: float) -> Blocks:
    """Return blocks of neighboring rows, equal in size up to one row, with isotropic variance."""
    parts = bisect(x, np.arange(len(x)), -(-len(x) // rows))
    return pack(x, weights, parts, np.full((len(parts), x.shape[1]), variance))


def bisect(x: np.ndarray, index: np.ndarray, parts: int, unit: int = 1) -> list[np.ndarray]:
    """Cut the widest column, again and again, into ``parts`` parts equal up to ``unit`` rows (a k-d tree).

    All but the last are multiples of ``unit``; some of the rows tell which column is the widest. Neighboring
    rows in one block keep the block's radius, and with it float32's loss, small.
    """
    if parts == 1:
        return [index]
    left, some = parts // 2, index[:: len(index) // 256 + 1]
    cut = -(-len(index) * left // (parts * unit)) * unit
    order = np.argpartition(x[index, np.argmax(np.ptp(x[some], axis=0))], cut)
    return bisect(x, index[order[:cut]], left, unit) + bisect(
        x, index[order[cut:]], parts - left, unit
    )


def equal_share(sizes: np.ndarray, total: int) -> int:
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
    x: np.ndarray,
    weights: np.ndarray,
    parts: list[np.ndarray],
    variances: np.ndarray,
    height: int | None = None,
) -> Blocks:
    """Return the rows ``x[part]`` of every part as one padded block each, neighbors side by side in it.

    Blocks have a ``height`` of rows, by default that of the largest part.
    """
    if max(map(len, parts)) > 4 * LEAF:  # smaller blocks are left out as a whole
        parts = [
            np.concatenate(bisect(x, part, max(1, -(-len(part) // LEAF)), LEAF)) for part in parts
        ]
    shape = len(parts), height or max(map(len, parts))
    rows, log_weights = np.zeros((*shape, x.shape[1])), np.full(shape, -np.inf)
    # Centers are rounded to float32 first, so that row = center + remainder holds in float32 too.
    centers = np.stack([x[part].mean(0) for part in parts]).astype(np.float32).astype(np.float64)
    for block, part in enumerate(parts):
        rows[block, : len(part)] = x[part] - centers[block]
        log_weights[block, : len(part)] = np.log(weights[part])
    return Blocks(rows, log_weights, centers, None, variances)


def mean_of(blocks: Blocks, library: Any = np) -> Any:
    """Return the law's mean (d,), with NumPy in float64 or under ``jit``."""
    mass, means = _means(blocks, library)
    return mass @ means


def _means(blocks: Blocks, library: Any) -> tuple[Any, Any]:
    """Return every block's mass and the mean of its rows."""
    weights = library.exp(blocks.log_weights)[..., None]
    mass = weights.sum((1, 2))
    tiny = np.finfo(blocks.variances.dtype).tiny
    offsets = (weights * blocks.rows).sum(1) / library.maximum(mass, tiny)[:, None]
    if blocks.bases is not None:
        offsets = (blocks.bases @ offsets[..., None])[..., 0]
    return mass, blocks.centers + offsets


def moments(blocks: Blocks, library: Any = np) -> tuple[Any, Any]:
    """Return the kernel's width and the law's variance, with NumPy in float64 or under ``jit``.

    The width is a geometric mean over directions and blocks, 0 for point masses; the variance, that per
    coordinate, is within and between blocks.
    """
    mass, means = _means(blocks, library)
    weights, tiny = (
        library.exp(blocks.log_weights)[..., None],
        np.finfo(blocks.variances.dtype).tiny,
    )
    logs = library.log(library.maximum(blocks.variances, tiny)).mean(1)
    # Of unequal directions the narrow ones ask for steps: 0.7 was best on POWER and MINIBOONE.
    mean = (1.0 if blocks.bases is None else 0.7) * library.exp(mass @ logs / 2)
    width = library.where(blocks.variances.any(), mean, 0.0)
    within = (weights * blocks.rows**2).sum() - mass @ ((means - blocks.centers) ** 2).sum(1)
    within += mass @ blocks.variances.sum(1)
    spread = means - (mass @ means)[None]
    return width, (within + mass @ (spread**2).sum(1)) / blocks.centers.shape[1]


def calibrated(
    kind: FrameKind, frame: Frame, blocks: Blocks, x: np.ndarray, weights: np.ndarray
) -> Frame:
    """Return ``frame``, of a ``kind``, made to fit the blocks' law of the rows ``x``.

    See ``Frame.calibrated``. Unchanged for up to 1,500 rows, whose own marginals are not known well enough;
    and if it was fitted elsewhere, so that it is its own kind.
    """
    if frame is kind or len(x) <= SMALL:
        return frame
    law = on_device(_thinned(blocks))

    def of_law(onto: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.asarray(tails(law, *on_device((onto, at))))

    return frame.calibrated(of_law, x, weights)


def _thinned(blocks: Blocks) -> Blocks:
    """Return the law of every m-th row of each block, so that about ``CALIBRATING_ROWS`` are left."""
    every = -(-blocks.log_weights.size // CALIBRATING_ROWS)
    if every == 1:
        return blocks
    kept = blocks.log_weights[:, ::every]
    full = np.isfinite(kept).any(1)  # others are padding
    missing = np.zeros(len(kept))
    missing[full] = logsumexp(blocks.log_weights[full], 1) - logsumexp(kept[full], 1)
    return replace(blocks, rows=blocks.rows[:, ::every], log_weights=kept + missing[:, None])
