r"""Schedules: how signal and noise are mixed at time t.

A schedule is a pair of functions of ``t`` in ``[0, 1]`` (0 is data, 1 is noise),

    x_t = alpha(t) x_0 + sigma(t) z,      z ~ N(0, I),

with ``alpha`` decreasing and the noise-to-signal ratio ``s = sigma / alpha`` increasing. The forward
SDE ``dx = b(t) x dt + g(t) dW`` follows by differentiation (arXiv 2310.14458, Section 3):

    b = d log(alpha) / dt,      g^2 = d sigma^2 / dt - 2 b sigma^2.

A schedule of your own is a frozen dataclass with two methods, of ``jax.numpy``; its numbers are traced by
``jit``, so that sweeping them never recompiles:

    @mcs.pytree()
    @dataclass(frozen=True)
    class Power(mcs.Schedule):
        power: float = 2.0

        def alpha(self, t):
            return 1 - t**self.power

        def variance(self, t):
            return t
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mcscore._arrays import floating, pytree
from mcscore._validation import of_type

Time = Float[ArrayLike, "*b"]
LARGE = 1e30  # squared ratios of noise to signal: beyond, products overflow float32
Number = Any  # a float to the user, a tracer under jit: sweeping it never recompiles


def _as_time(t: ArrayLike) -> Array:
    """Return ``t`` as a floating array, a Python number being one of the default precision."""
    return floating(jnp.asarray(t, None if hasattr(t, "dtype") else float))


def _require(text: str, holds: Callable[..., bool], *numbers: Any) -> None:
    """Raise ``ValueError`` unless numbers, where they are known and not traced, are as they should be."""
    known = all(isinstance(number, int | float | np.number) for number in numbers)
    if known and not holds(*numbers):
        raise ValueError(f"{text}, got {', '.join(map(str, numbers))}")


@dataclass(frozen=True)
class Schedule:
    """Base of all schedules: give it ``alpha(t)`` and ``variance(t)``; all else follows."""

    def alpha(self, t: Array) -> Array:
        """Return the signal's scale at ``t``."""
        raise NotImplementedError(f"{type(self).__name__} must define alpha(t)")

    def variance(self, t: Array) -> Array:
        """Return ``sigma(t)^2``, the variance of the noise at ``t``."""
        raise NotImplementedError(f"{type(self).__name__} must define variance(t)")

    def __call__(self, t: ArrayLike) -> tuple[Array, Array]:
        """Return ``(alpha(t), sigma(t))``.

        >>> alpha, sigma = Rectified()(0.25)
        >>> float(alpha), float(sigma)
        (0.75, 0.25)
        """
        t = _as_time(t)
        alpha, variance = self._moments(t)
        return alpha, jnp.sqrt(variance)

    def rates(self, t: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Return ``(alpha, sigma^2, d alpha/dt, d sigma^2/dt)`` by one forward derivative."""
        t = _as_time(t)
        (alpha, variance), (d_alpha, d_variance) = jax.jvp(self._moments, (t,), (jnp.ones_like(t),))
        return alpha, variance, d_alpha, d_variance

    def drift(self, t: ArrayLike) -> Array:
        """Return ``b(t) = d log(alpha)/dt`` of the forward SDE (infinite where alpha is 0)."""
        alpha, _, d_alpha, _ = self.rates(t)
        return d_alpha / alpha

    def diffusion(self, t: ArrayLike) -> Array:
        """Return ``g(t)^2 = d sigma^2/dt - 2 b sigma^2`` of the forward SDE."""
        alpha, variance, d_alpha, d_variance = self.rates(t)
        return d_variance - 2 * d_alpha / alpha * variance

    def noise_ratio(self, t: ArrayLike) -> Array:
        """Return ``s(t) = sigma / alpha``, the noise-to-signal ratio."""
        alpha, sigma = self(t)
        return sigma / alpha

    def time(self, s: ArrayLike) -> Array:
        """Return the ``t`` at which ``sigma / alpha = s``: bisection, unless a schedule knows better.

        Ratios outside the schedule's range give the nearer end, 0 or 1.
        """
        s = _as_time(s)

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            alpha, sigma = self(middle)
            below = sigma < s * alpha
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        bits = jnp.finfo(s.dtype).nmant + 2
        low, high = jax.lax.fori_loop(0, bits, halve, (jnp.zeros_like(s), jnp.ones_like(s)))
        return (low + high) / 2

    def _moments(self, t: Array) -> tuple[Array, Array]:
        return jnp.broadcast_to(self.alpha(t), t.shape), jnp.broadcast_to(self.variance(t), t.shape)


@pytree()
@dataclass(frozen=True)
class Linear(Schedule):
    """The paper's schedule: ``alpha = 1 - (1-eps) t``, ``sigma^2 = eps + (1-eps) t``.

    Args:
        eps: Variance of the noise left at ``t = 0`` and signal left at ``t = 1``. The law sampled at
            ``t = 0`` is the data plus noise of standard deviation ``sqrt(eps)``.

    >>> alpha, sigma = Linear(eps=0.01)(1.0)
    >>> round(float(alpha), 3), float(sigma)
    (0.01, 1.0)
    """

    eps: Number = 0.01

    def __post_init__(self) -> None:
        _require("eps: expected from 0 to below 1", lambda eps: 0 <= eps < 1, self.eps)

    def alpha(self, t: Array) -> Array:
        """Return ``1 - (1-eps) t``."""
        return 1 - (1 - self.eps) * t

    def variance(self, t: Array) -> Array:
        """Return ``eps + (1-eps) t``."""
        return self.eps + (1 - self.eps) * t

    def time(self, s: ArrayLike) -> Array:
        """Return the root of ``s^2 alpha^2 = sigma^2`` in a form without cancellation."""
        s2 = _as_time(s) ** 2
        tau = 2 * (s2 - self.eps) / (2 * s2 + 1 + jnp.sqrt(1 + 4 * s2 * (1 + self.eps)))
        return jnp.where(s2 > LARGE, 1, jnp.clip(tau / (1 - self.eps), 0, 1))


@pytree()
@dataclass(frozen=True)
class Cosine(Schedule):
    """Variance-preserving, equal steps in angle: ``alpha = cos(pi t/2)``, ``sigma = sin(pi t/2)``."""

    def alpha(self, t: Array) -> Array:
        """Return ``cos(pi t/2)``, exactly 0 at ``t = 1``."""
        return jnp.sin(jnp.pi / 2 * (1 - t))

    def variance(self, t: Array) -> Array:
        """Return ``sin(pi t/2)^2``."""
        return jnp.sin(jnp.pi / 2 * t) ** 2

    def time(self, s: ArrayLike) -> Array:
        """Return ``2/pi atan(s)``."""
        return 2 / jnp.pi * jnp.arctan(_as_time(s))


@pytree()
@dataclass(frozen=True)
class VP(Schedule):
    """Variance-preserving SDE with linear rate: ``alpha = exp(-B/2)``, ``sigma^2 = 1 - alpha^2``.

    ``B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`` (Song et al., arXiv 2011.13456).
    """

    beta_min: Number = 0.1
    beta_max: Number = 20.0

    def __post_init__(self) -> None:
        _require(
            "beta_min, beta_max: expected 0 < beta_min <= beta_max",
            lambda least, most: 0 < least <= most < np.inf,
            self.beta_min,
            self.beta_max,
        )

    def _exponent(self, t: Array) -> Array:
        return t * (self.beta_min + (self.beta_max - self.beta_min) * t / 2)

    def alpha(self, t: Array) -> Array:
        """Return ``exp(-B/2)``."""
        return jnp.exp(-self._exponent(t) / 2)

    def variance(self, t: Array) -> Array:
        """Return ``1 - exp(-B)``, accurate near 0."""
        return -jnp.expm1(-self._exponent(t))

    def time(self, s: ArrayLike) -> Array:
        """Return the root of ``B(t) = log(1 + s^2)`` in a form without cancellation."""
        exponent = jnp.log1p(_as_time(s) ** 2)
        slope = self.beta_max - self.beta_min
        root = self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * exponent)
        return jnp.where(jnp.isinf(exponent), 1, jnp.clip(2 * exponent / root, 0, 1))


@pytree()
@dataclass(frozen=True)
class VE(Schedule):
    """Variance-exploding: ``alpha = 1``, ``sigma = sigma_min (sigma_max/sigma_min)^t``."""

    sigma_min: Number = 0.01
    sigma_max: Number = 100.0

    def __post_init__(self) -> None:
        _require(
            "sigma_min, sigma_max: expected 0 < sigma_min < sigma_max",
            lambda least, most: 0 < least < most < np.inf,
            self.sigma_min,
            self.sigma_max,
        )

    def alpha(self, t: Array) -> Array:
        """Return 1."""
        return jnp.ones_like(t)

    def variance(self, t: Array) -> Array:
        """Return ``sigma_min^2 (sigma_max/sigma_min)^(2t)``."""
        return self.sigma_min**2 * jnp.exp(2 * t * jnp.log(self.sigma_max / self.sigma_min))

    def time(self, s: ArrayLike) -> Array:
        """Return ``log(s/sigma_min) / log(sigma_max/sigma_min)``."""
        ratio = jnp.log(_as_time(s) / self.sigma_min) / jnp.log(self.sigma_max / self.sigma_min)
        return jnp.clip(ratio, 0, 1)


@pytree()
@dataclass(frozen=True)
class Rectified(Schedule):
    """Straight lines, as in flow matching: ``alpha = 1 - t``, ``sigma = t``."""

    def alpha(self, t: Array) -> Array:
        """Return ``1 - t``."""
        return 1 - t

    def variance(self, t: Array) -> Array:
        """Return ``t^2``."""
        return t**2

    def time(self, s: ArrayLike) -> Array:
        """Return ``s / (1 + s)``."""
        s = _as_time(s)
        return jnp.where(jnp.isinf(s), 1, s / (1 + s))


def check_schedule(schedule: Any) -> None:
    """Raise ``ValueError`` unless it is a schedule, registered for ``jit``."""
    of_type(Schedule, "mcs.Cosine()", schedule=schedule)
    if jax.tree_util.all_leaves([schedule]):
        raise ValueError(f"schedule: decorate {type(schedule).__name__} by @mcs.pytree()")
