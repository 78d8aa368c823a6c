"""Frames calibrated: every column's marginal under the law made the data's again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jax.nn import logsumexp

from mcscore._arrays import on_device
from mcscore.frames import Frame, FrameKind
from mcscore.jet.blocks import Blocks
from mcscore.jet.conditioning import tails

SMALL = 1500  # rows: below, marginals and likelihoods are too noisy for fine choices
CALIBRATING_ROWS = 200_000  # of larger laws, a part of the rows gives the marginals


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
    missing = logsumexp(blocks.log_weights, 1) - logsumexp(kept, 1)
    return replace(blocks, rows=blocks.rows[:, ::every], log_weights=kept + missing[:, None])
