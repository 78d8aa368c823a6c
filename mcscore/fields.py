r"""Fields of the diffused law: score, denoiser, density, divergence, velocity.

Every one is a reading of the jet at ``x_t = alpha x_0 + sigma z``, for a batch of queries and a time
that is a scalar or one per query, in the coordinates of the mixture. Section 3 of arXiv 2310.14458.
All are ``jit``-, ``vmap``- and ``grad``-safe, cost O(b n d) and stream over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from mcscore.jet import (
    Jet,
    denoiser_reading,
    over_tiles,
    product,
    score_reading,
    stream,
    velocity_reading,
)
from mcscore.mixtures import Mixture
from mcscore.posterior import block_weights
from mcscore.schedules import Schedule, Time

Points = Float[ArrayLike, "b d"]


@partial(jax.jit, static_argnames=("reading", "laplacian"))
def evaluate(
    x_t: Points,
    t: Time,
    mixture: Mixture,
    schedule: Schedule,
    *,
    reading: Callable = score_reading,
    laplacian: bool = True,
) -> Jet:
    """Return ``(log p_t, grad log p_t, lap log p_t)`` in one pass over the data.

    Args:
        x_t: Query points (b, d), in the coordinates of ``mixture``.
        t: Time in ``[0, 1]``, a scalar or one per query; 0 is data, 1 is noise.
        mixture: The data law.
        schedule: How it is diffused.
        reading: Vector field to read; the score by default.
        laplacian: Whether to compute the Laplacian too (score only).

    Raises:
        ValueError: If shapes do not fit.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> evaluate(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).log_p.shape
    (1,)
    """
    x_t = jnp.asarray(x_t, mixture.dtype)
    t = jnp.asarray(t, x_t.dtype)
    if t.ndim > 1 or (t.ndim == 1 and t.shape != x_t.shape[:1]):
        raise ValueError(
            f"t: expected a scalar or one time per query {x_t.shape[:1]}, got {t.shape}"
        )
    alpha, variance, *rates = schedule.rates(t)
    tangent = tuple(rates) if reading is velocity_reading else None
    return stream(
        x_t,
        alpha,
        variance,
        mixture.blocks,
        coefficients=reading,
        rates=tangent,
        laplacian=laplacian,
        exact=reading is not velocity_reading,
    )


def score(x_t: Points, t: Time, mixture: Mixture, schedule: Schedule) -> Float[Array, "b d"]:
    """Return the score of the diffused data law, ``grad log p_t(x_t)``, exactly.

    Args and errors are those of ``evaluate``.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> score(jnp.zeros((1, 2)), 0.5, mixture(jnp.ones((5, 2)), kernel=Isotropic(0.1)), Linear()).shape
    (1, 2)
    """
    return evaluate(x_t, t, mixture, schedule, laplacian=False).field


def denoise(x_t: Points, t: Time, mixture: Mixture, schedule: Schedule) -> Float[Array, "b d"]:
    """Return ``E[x_0 | x_t] = (x_t + sigma^2 score) / alpha`` (Tweedie), regular at ``alpha = 0`` too.

    >>> from mcscore import Dirac, Linear, mixture
    >>> denoise(jnp.zeros((1, 2)), 0.5, mixture(jnp.ones((5, 2)), kernel=Dirac()), Linear())
    Array([[1., 1.]], dtype=float...)
    """
    return evaluate(x_t, t, mixture, schedule, reading=denoiser_reading, laplacian=False).field


def velocity(x_t: Points, t: Time, mixture: Mixture, schedule: Schedule) -> Float[Array, "b d"]:
    """Return ``dx/dt = b x - g^2/2 score`` of the probability-flow ODE.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> velocity(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).shape
    (1, 2)
    """
    return evaluate(x_t, t, mixture, schedule, reading=velocity_reading, laplacian=False).field


def log_density(x_t: Points, t: Time, mixture: Mixture, schedule: Schedule) -> Float[Array, "b"]:
    """Return ``log p_t(x_t)`` in nats, in the coordinates of ``mixture``.

    >>> from mcscore import Isotropic, Linear, mixture
    >>> log_density(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).shape
    (1,)
    """
    return evaluate(x_t, t, mixture, schedule, laplacian=False).log_p


def divergence(x_t: Points, t: Time, mixture: Mixture, schedule: Schedule) -> Float[Array, "b"]:
    """Return the divergence of the score, ``lap log p_t(x_t)``, in closed form (no trace estimator).

    >>> from mcscore import Isotropic, Linear, mixture
    >>> divergence(jnp.zeros((1, 2)), 0.5, mixture(jnp.eye(2), kernel=Isotropic(0.1)), Linear()).shape
    (1,)
    """
    laplacian = evaluate(x_t, t, mixture, schedule).laplacian
    assert laplacian is not None  # asked for
    return laplacian


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScoreEstimate:
    """A Monte Carlo score, unpacked as ``score, standard_error = estimate``.

    Attributes:
        score: The estimate (b, d).
        standard_error: One standard deviation of each coordinate (b, d), delta method for the ratio.
        effective_sample_size: ``1 / sum w^2`` of the weights (b,), summed over mini-batches.
    """

    score: Any
    standard_error: Any
    effective_sample_size: Any

    def __iter__(self) -> Iterator[Array]:
        return iter((self.score, self.standard_error))


@partial(jax.jit, static_argnames=("batch_size", "batches"))
def minibatch_score(
    key: Array,
    x_t: Points,
    t: Time,
    mixture: Mixture,
    schedule: Schedule,
    *,
    batch_size: int = 1000,
    batches: int = 1,
) -> ScoreEstimate:
    """Return the paper's mini-batch Monte Carlo score and its standard error.

    ``batch_size`` rows are drawn with replacement; the estimator is a ratio of two means, so its bias
    and the error of the standard error fall like 1/effective sample size. An effective sample size
    near 1 means that one row decides: then neither the estimate nor its standard error can be trusted.

    Args:
        key: Random key.
        x_t: Queries (b, d), in the coordinates of ``mixture``.
        t: Time, a scalar or one per query.
        mixture: The data law, with an isotropic kernel.
        schedule: How it is diffused.
        batch_size: Rows of one mini-batch, J.
        batches: Independent mini-batches, evaluated by ``vmap`` and averaged.

    Raises:
        ValueError: If shapes do not fit or a size is not positive.

    >>> from mcscore import Dirac, Linear, mixture
    >>> law = mixture(jax.random.normal(jax.random.key(0), (500, 2)), kernel=Dirac())
    >>> s, se = minibatch_score(jax.random.key(1), jnp.zeros((3, 2)), 0.5, law, Linear(), batch_size=100)
    >>> s.shape, se.shape
    ((3, 2), (3, 2))
    """
    if batches < 1:
        raise ValueError(f"batches: expected at least 1, got {batches}")
    x_t = jnp.asarray(x_t, mixture.dtype)
    if x_t.ndim != 2 or x_t.shape[1] != mixture.dimension:
        raise ValueError(f"x_t: expected shape (queries, {mixture.dimension}), got {x_t.shape}")
    alpha, variance, *_ = schedule.rates(jnp.asarray(t, x_t.dtype))
    alpha, variance = jnp.reshape(alpha, (-1, 1)), jnp.reshape(variance, (-1, 1))

    def one(key):
        estimate = partial(_estimate, mixture.subsample(key, batch_size))
        return over_tiles(estimate, (x_t, alpha, variance), batch_size)

    score, squared_error, ess = jax.vmap(one)(jax.random.split(key, batches))
    error = jnp.sqrt(squared_error.sum(0)) / batches
    return ScoreEstimate(score.mean(0), error, ess.sum(0))


def _estimate(law: Mixture, operands: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Return a mini-batch's score, the delta-method variance of each coordinate, and the ESS.

    Var = J/(J-1) sum_i w_i^2 (s_i - s)^2 for normalised weights w_i and per-row scores s_i.
    """
    x_t, alpha, variance = (operand.T for operand in operands)
    points, log_weights = law.points()
    centre = law.blocks.centres[:1]
    rows, x = points - centre, x_t - alpha * centre.T
    precision = 1 / (alpha**2 * law.blocks.variances[:1].T + variance)
    weights, _ = block_weights(x, alpha, precision, rows, log_weights)
    weights = weights / weights.sum(0, keepdims=True)
    squares = weights**2
    mean = product(rows.T, weights)
    share = squares.sum(0)
    spread = (
        product((rows**2).T, squares) - 2 * mean * product(rows.T, squares) + mean**2 * share[None]
    )
    size = jnp.isfinite(log_weights).sum().astype(x_t.dtype)
    bessel = size / jnp.maximum(size - 1, 1)
    squared_error = bessel * (alpha * precision) ** 2 * jnp.maximum(spread, 0)
    return (-precision * (x - alpha * mean)).T, squared_error.T, 1 / share
