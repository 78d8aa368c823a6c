r"""The density of a one-step generator, by inversion and change of variables.

Newton's method solves ``G(z) = y``; then

    log p(y) = log N(z; 0, I) - log |det dG/dz|.

Every value carries its certificate: how well the equation is solved, in how many steps, and the sign of
the determinant. The flow that a generator learns preserves orientation; where the sign is negative the
network folds, several ``z`` share one ``y``, and the value is no density. The certificate is of the noise
that was found; that no other noise, beyond a fold, reaches the same point, it does not say.
``Agreement.folded`` is the share of noise in folds: where that is zero, no point is reached twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MOST_STEPS = 30
STEP_LENGTHS = (1.0, 0.5, 0.2, 0.05, 0.01)


class Density(NamedTuple):
    """Log densities (b,), each with its certificate.

    Attributes:
        log_prob: ``log p(x)`` in nats and the user's units; NaN where it is not certified: Newton's method
            did not converge, or the map folds.
        z: The noise found (b, d): ``gen(z) = x``.
        residual: Largest coordinate of ``|G(z) - y|``, in the frame's coordinates.
        steps: Newton steps taken.
        sign: Sign of ``det dG/dz``.
    """

    log_prob: Float[Array, "b"]
    z: Float[Array, "b d"]
    residual: Float[Array, "b"]
    steps: Int[Array, "b"]
    sign: Float[Array, "b"]

    @property
    def certified(self) -> Bool[Array, "b"]:
        """Where the equation is solved and the map keeps its orientation, at the noise found."""
        return ~jnp.isnan(self.log_prob)


class _State(NamedTuple):
    z: Array
    miss: Array
    error: Array
    steps: Array
    active: Array


def jacobian(function: Callable, z: Float[Array, "b d"]) -> tuple[Array, Float[Array, "b d d"]]:
    """Return ``function(z)`` and each row's Jacobian ``dG_i/dz_j``, rows being independent.

    One forward pass, and ``d`` products with its linearization for all rows at once.
    """
    value, push = jax.linearize(function, z)
    columns = jax.vmap(lambda e: push(jnp.broadcast_to(e, z.shape)))(
        jnp.eye(z.shape[1], dtype=z.dtype)
    )
    return value, jnp.moveaxis(columns, 0, -1)


def log_normal(z: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Return the log density of the standard normal distribution."""
    return -jnp.sum(z**2 + jnp.log(jnp.asarray(2 * jnp.pi, z.dtype)), -1) / 2


def push_forward(function: Callable, z: Float[Array, "b d"]) -> tuple[Array, Array, Array]:
    """Return ``y = G(z)``, ``log p(y)`` and the sign of the determinant, for normal noise ``z``."""
    y, slopes = jacobian(function, z)
    sign, log_det = jnp.linalg.slogdet(slopes)
    return y, log_normal(z) - log_det, sign


def pull_back(function: Callable, y: Float[Array, "b d"], start: Float[Array, "b d"]) -> Density:
    """Return the density of ``G(z)`` at ``y``, solving ``G(z) = y`` from ``start``.

    Damped Newton: of several step lengths, each point takes the one that leaves the least residual,
    until that is at the level of rounding, no length helps any more, or ``MOST_STEPS`` are taken.
    """
    tolerance = 64 * jnp.finfo(y.dtype).eps * (1 + jnp.max(jnp.abs(y), 1))

    def errors(miss: Array) -> Array:
        error = jnp.max(jnp.abs(miss), -1)
        return jnp.where(jnp.isfinite(error), error, jnp.inf)

    def step(state: _State) -> _State:
        slopes = jacobian(function, state.z)[1]
        # Flat directions get no step instead of an infinite one.
        newton = jnp.linalg.solve(slopes, state.miss[..., None])[..., 0]
        newton = jnp.where(jnp.isfinite(newton).all(1, keepdims=True), newton, state.miss)
        lengths = jnp.asarray(STEP_LENGTHS, y.dtype)[:, None, None]
        trials = state.z[None] - lengths * newton[None]
        misses = jax.vmap(function)(trials) - y[None]
        best = jnp.argmin(errors(misses), 0)
        z, miss = (jnp.take_along_axis(a, best[None, :, None], 0)[0] for a in (trials, misses))
        better = state.active & (errors(miss) < state.error)
        z, miss = (jnp.where(better[:, None], a, b) for a, b in ((z, state.z), (miss, state.miss)))
        error = errors(miss)
        steps = state.steps + state.active.astype(state.steps.dtype)
        return _State(z, miss, error, steps, better & (error > tolerance))

    miss = function(start) - y
    first = _State(
        start, miss, errors(miss), jnp.zeros(y.shape[:1], jnp.int32), errors(miss) > tolerance
    )

    def going(state: _State) -> Array:
        return jnp.any(state.active & (state.steps < MOST_STEPS))

    solved = jax.lax.while_loop(going, step, first)
    _, log_p, sign = push_forward(function, solved.z)
    # Rounding of a steep map may stop the residual above its level: a step of this size is still small.
    certified = (solved.error <= 16 * tolerance) & (sign > 0)
    return Density(jnp.where(certified, log_p, jnp.nan), solved.z, solved.error, solved.steps, sign)
