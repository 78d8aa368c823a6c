r"""Fields of the diffused law: score, denoiser, density, divergence, velocity.

Every one is a reading of the jet at ``x_t = alpha x_0 + sigma z``, for a batch of queries and a time
that is a scalar or one per query, in the coordinates of the mixture. Section 3 of arXiv 2310.14458.
All are ``jit``-, ``vmap``- and ``grad``-safe, cost O(b n d) and stream over the data.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from mcscore._arrays import is_zero
from mcscore._numbers import described, points
from mcscore._validation import of_type
from mcscore.jet import Denoiser, Jet, Reading, Score, Velocity, stream
from mcscore.mixtures.conditional import ConditionalMixture
from mcscore.mixtures.value import Mixture
from mcscore.parallel import over_queries
from mcscore.schedules import Schedule, Time, check_schedule

Law = Mixture | ConditionalMixture
Points = Float[ArrayLike, "b d"] | Float[ArrayLike, "d"]


def evaluate(
    x_t: Points,
    t: Time,
    mixture: Law,
    schedule: Schedule,
    *,
    condition: Any = None,
    reading: Reading = Score(),
    laplacian: bool | None = None,
) -> Jet:
    """Return ``(log p_t, grad log p_t, lap log p_t)`` in one pass over the data.

    Args:
        x_t: Query points (b, d), in the coordinates of ``mixture``.
        t: Time in ``[0, 1]``, a scalar or one per query; 0 is data, 1 is noise.
        mixture: The data law.
        schedule: How it is diffused.
        condition: For a conditional law, in the user's units: one for all (k,), or one per query (b, k).
        reading: Vector field to read, of ``mcscore.jet``; the score by default.
        laplacian: Whether to compute the Laplacian too, which only goes with the score; by default it does.

    Raises:
        ValueError: If shapes do not fit, a time that is no JAX array is not in ``[0, 1]``, or a Laplacian is
            asked for beside another reading than the score.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> evaluate(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).log_p.shape
    (1,)
    """
    second = isinstance(reading, Score) if laplacian is None else laplacian
    return _evaluated(x_t, t, mixture, schedule, condition, reading, 2 if second else 1)


def times(t: Any, x_t: Array) -> Array:
    """Return a time, or one for each query, in the queries' precision; ``ValueError`` if it is none."""
    if not isinstance(t, jax.Array):  # known without waiting for a device
        try:
            t = np.asarray(t, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"t: expected times in [0, 1], got {described(t)}") from error
        for late in np.ravel(t)[~((np.ravel(t) >= 0) & (np.ravel(t) <= 1))]:
            raise ValueError(f"t: expected times in [0, 1], got {late}")
    t = jnp.asarray(t, x_t.dtype)
    if t.ndim > 1 or (t.ndim == 1 and t.shape != x_t.shape[:1]):
        raise ValueError(
            f"t: expected a scalar or one time per query {x_t.shape[:1]}, got {t.shape}"
        )
    return t


def _evaluated(
    x_t: Points,
    t: Time,
    mixture: Law,
    schedule: Schedule,
    condition: Any,
    reading: Reading,
    order: int,
) -> Jet:
    """Return ``evaluate``; of order 0 only the field, of order 1 the log density too, of order 2 all."""
    of_type((Mixture, ConditionalMixture), "mcs.mixture(x, ...)", mixture=mixture)
    check_schedule(schedule)
    x_t = jnp.asarray(points(x_t, mixture.dimension, None, "x_t"), mixture.dtype)
    given, t = t, times(t, x_t)
    at_data = not isinstance(given, jax.Array) and np.min(np.asarray(given), initial=1) == 0
    if at_data and is_zero(schedule.variance(jnp.zeros((), x_t.dtype))):
        mixture.require_width("t = 0")
    c = mixture.conditions(condition, len(x_t))
    over, rest = mixture.evaluation.over, (mixture, schedule, reading)
    return over_queries(at_times, (x_t, t, c), rest, order, over=over)


@partial(jax.jit, static_argnums=6)
def at_times(
    x_t: Array,
    t: Array,
    conditions: Array | None,
    mixture: Law,
    schedule: Schedule,
    reading: Reading,
    order: int,
) -> Jet:
    """Return ``evaluate``, nothing checked, conditions in the law's own coordinates."""
    alpha, variance, *rates = schedule.rates(t)
    jet = stream(
        mixture.queries(x_t, conditions),
        alpha,
        variance,
        mixture.blocks,
        reading=reading.at(*rates),
        laplacian=order > 1,
        evaluation=mixture.evaluation,
    )
    return jet._replace(log_p=jet.log_p - mixture.log_evidence(conditions)) if order > 0 else jet


def score(
    x_t: Points, t: Time, mixture: Law, schedule: Schedule, *, condition: Any = None
) -> Float[Array, "b d"]:
    """Return the score of the diffused data law, ``grad log p_t(x_t)``, exactly.

    Args and errors are those of ``evaluate``.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> score(jnp.zeros((1, 2)), 0.5, mixture(jnp.ones((5, 2)), kernel=Isotropic(0.1)), Linear()).shape
    (1, 2)
    """
    return _evaluated(x_t, t, mixture, schedule, condition, Score(), 0).field


def denoise(
    x_t: Points, t: Time, mixture: Law, schedule: Schedule, *, condition: Any = None
) -> Float[Array, "b d"]:
    """Return ``E[x_0 | x_t] = (x_t + sigma^2 score) / alpha`` (Tweedie), regular at ``alpha = 0`` too.

    >>> from mcscore import Dirac, Linear, mixture
    >>> denoise(jnp.zeros((1, 2)), 0.5, mixture(jnp.ones((5, 2)), kernel=Dirac()), Linear())
    Array([[1., 1.]], dtype=float...)
    """
    return _evaluated(x_t, t, mixture, schedule, condition, Denoiser(), 0).field


def velocity(
    x_t: Points, t: Time, mixture: Law, schedule: Schedule, *, condition: Any = None
) -> Float[Array, "b d"]:
    """Return ``dx/dt = b x - g^2/2 score`` of the probability-flow ODE.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> velocity(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).shape
    (1, 2)
    """
    return _evaluated(x_t, t, mixture, schedule, condition, Velocity(), 0).field


def log_density(
    x_t: Points, t: Time, mixture: Law, schedule: Schedule, *, condition: Any = None
) -> Float[Array, "b"]:
    """Return ``log p_t(x_t)`` in nats, in the coordinates of ``mixture``.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> log_density(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).shape
    (1,)
    """
    return _evaluated(x_t, t, mixture, schedule, condition, Score(), 1).log_p


def divergence(
    x_t: Points, t: Time, mixture: Law, schedule: Schedule, *, condition: Any = None
) -> Float[Array, "b"]:
    """Return the divergence of the score, ``lap log p_t(x_t)``, in closed form (no trace estimator).

    >>> from mcscore import Isotropic, Linear, mixture
    >>> divergence(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).shape
    (1,)
    """
    laplacian = _evaluated(x_t, t, mixture, schedule, condition, Score(), 2).laplacian
    assert laplacian is not None  # asked for
    return laplacian
