"""The noise of the pairs, in chunks that depend on a key and their index alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


@dataclass(frozen=True)
class Normal:
    """Independent standard normal noise."""

    def chunk(self, key: Array, index: int, size: int, d: int, dtype: Any) -> Array:
        """Return the noise of chunk ``index``."""
        return jax.random.normal(jax.random.fold_in(key, index), (size, d), dtype)


@dataclass(frozen=True)
class Sobol:
    """Scrambled Sobol points through the normal quantile: more even than independent draws.

    Balanced when the number of pairs is a power of two.
    """

    def chunk(self, key: Array, index: int, size: int, d: int, dtype: Any) -> Array:
        """Return points ``index * size`` to ``(index + 1) * size`` of one scrambled sequence."""
        from scipy.stats import norm, qmc

        seed = int(jax.random.bits(key, dtype=jnp.uint32))
        sequence = qmc.Sobol(d, scramble=True, rng=seed)
        if index:
            sequence.fast_forward(index * size)
        with warnings.catch_warnings():  # chunks need not be powers of two
            warnings.simplefilter("ignore", UserWarning)
            uniform = sequence.random(size)
        half_bit = 2.0**-32
        return jnp.asarray(norm.ppf(np.clip(uniform, half_bit, 1 - half_bit)), dtype)
