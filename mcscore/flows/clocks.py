r"""Clocks: in which variable the flow is integrated.

Every schedule gives the same trajectories up to scale and clock. The canonical clock integrates where
the right-hand side is smoothest: with ``q^2 = s^2 + h^2`` (h: the kernel's reference width) and a law
of variance ``g^2 + h^2`` (g = 1 for the Dirac kernel on standardized data),

    p = asinh(g/q),      u = y / sqrt(g^2 + q^2),      y = x_t / alpha,

the flow ``du/dp`` vanishes for a Gaussian of that variance and is finite at both ends, ``q -> inf``
and ``s -> 0``. In these variables ``u`` is itself a diffused law, with

    alpha(p) = tanh(p) / g,      sigma^2(p) = 1 - (1 + h^2/g^2) tanh(p)^2,

so that its velocity is the one reading of the jet that every schedule shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mcscore._arrays import pytree
from mcscore.mixtures.conditional import ConditionalMixture
from mcscore.mixtures.value import Mixture
from mcscore.schedules import Schedule


@pytree()
@dataclass(frozen=True)
class _Canonical(Schedule):
    """The canonical variables as a schedule whose time is ``p``."""

    width: Any
    scale: Any

    def alpha(self, t: Array) -> Array:
        return jnp.tanh(t) / self.scale

    def variance(self, t: Array) -> Array:
        variance = 1 - (1 + (self.width / self.scale) ** 2) * jnp.tanh(t) ** 2
        # Rounding must turn neither the variance negative nor, at its zero, its derivative to 0.
        return variance + jax.lax.stop_gradient(jnp.maximum(variance, 0) - variance)


@dataclass(frozen=True)
class CanonicalClock:
    """Equal steps in ``p = asinh(1/q)``, the coordinate in which the flow is smoothest.

    Args:
        matched: Start from noise of the law's own mean and variance at ``t = 1``. False starts, as the paper,
            from ``sigma(1) z``, which is not the law there unless ``alpha(1)`` is small beside ``sigma(1)``.
    """

    matched: bool = True

    def __call__(
        self, mixture: Mixture | ConditionalMixture, schedule: Schedule, dtype: Any
    ) -> tuple[Schedule, Array]:
        """Return the schedule to integrate in and its times ``(noise, data)``."""
        alpha, variance, *_ = schedule.rates(jnp.asarray([1, 0], dtype))
        total = mixture.variance.astype(dtype)
        h2 = jnp.minimum(mixture.width.astype(dtype) ** 2, 0.75 * total)
        scale = jnp.where(total > 0, jnp.sqrt(total - h2), 1)
        # asinh(g alpha / sqrt(sigma^2 + h^2 alpha^2)): finite also where alpha = 0.
        times = jnp.arcsinh(scale * alpha / jnp.sqrt(variance + h2 * alpha**2))
        return _Canonical(jnp.sqrt(h2), scale), times


@dataclass(frozen=True)
class TimeClock:
    """Equal steps in ``t``: with ``solver=diffrax.Euler(), steps=500`` this is the paper's sampler.

    Args:
        matched: See `CanonicalClock`; the paper's start is ``TimeClock(matched=False)``.
    """

    matched: bool = True

    def __call__(
        self, mixture: Mixture | ConditionalMixture, schedule: Schedule, dtype: Any
    ) -> tuple[Schedule, Array]:
        """Return the schedule itself and the times ``(1, 0)``."""
        return schedule, jnp.asarray([1, 0], dtype)


Clock = CanonicalClock | TimeClock
