"""Several processes of one run: the first writes, and what it has read is what all have read."""

from __future__ import annotations

import jax
import numpy as np


def several() -> bool:
    """Return whether this process is one of several of a run, under ``jax.distributed``."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Return whether this process writes: the first one, or the only one."""
    return not several() or jax.process_index() == 0


def of_first(data: bytes) -> bytes:
    """Return the bytes that the first process has; every process has to ask, in the same order."""
    if not several():
        return data
    from jax.experimental.multihost_utils import broadcast_one_to_all  # seldom needed

    size = int(broadcast_one_to_all(np.asarray(len(data), np.int32)))
    own = np.frombuffer(data, np.uint8) if is_first() else np.zeros(size, np.uint8)
    return np.asarray(broadcast_one_to_all(own)).tobytes()
