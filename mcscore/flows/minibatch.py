"""The paper's estimator: the score of a mini-batch of rows, with its standard error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mcscore._arrays import enable_x64, is_traced, pytree
from mcscore._numbers import points
from mcscore._validation import as_key, at_least, of_type
from mcscore.flows.fields import Points, times
from mcscore.jet.dense import block_weights, product
from mcscore.jet.streaming import loses_digits, over_tiles
from mcscore.mixtures.value import Mixture
from mcscore.schedules import Schedule, Time, check_schedule

FEW = 5  # rows: an effective sample size below says that a handful decide
OFTEN = 0.1  # of the queries: so many poor ones are worth a warning


@pytree()
@dataclass(frozen=True, eq=False)
class ScoreEstimate:
    """A Monte Carlo score, unpacked as ``score, standard_error = estimate``.

    Attributes:
        score: The estimate (b, d).
        standard_error: One standard deviation of each coordinate (b, d), delta method for the ratio.
        effective_sample_size: ``1 / sum w^2`` of the weights (b,) of one mini-batch, their mean: the bias
            falls with it, however many there are.
    """

    score: Any
    standard_error: Any
    effective_sample_size: Any

    def __iter__(self) -> Iterator[Array]:
        return iter((self.score, self.standard_error))


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
    of_type(Mixture, "mcs.mixture(x, kernel=mcs.Dirac())", mixture=mixture)
    if mixture.blocks.bases is not None:
        raise ValueError("mixture: expected one with an isotropic kernel, got local covariances")
    check_schedule(schedule)
    at_least(1, batches=batches, batch_size=batch_size)
    x_t = jnp.asarray(points(x_t, mixture.dimension, None, "x_t"), mixture.dtype)
    key, t, sizes = as_key(key), times(t, x_t), (int(batch_size), int(batches))
    alpha, variance, *_ = schedule.rates(t)
    traced = any(map(is_traced, jax.tree.leaves((x_t, t, mixture, schedule))))
    single = not traced and x_t.dtype == jnp.float32
    if single and loses_digits(x_t, alpha, variance, mixture.blocks):
        with enable_x64(True):  # as all fields are
            exact = _minibatch_score(key, *_cast((x_t, t, mixture), jnp.float64), schedule, *sizes)
            found = _cast(exact, jnp.float32)
    else:
        found = _minibatch_score(key, x_t, t, mixture, schedule, *sizes)
    if not is_traced(found.score):
        poor = float(np.mean(np.asarray(found.effective_sample_size) < FEW))
        if poor > OFTEN:
            warnings.warn(
                f"{poor:.0%} of the queries have an effective sample size below {FEW} in a "
                "mini-batch: neither score nor standard error can be trusted there; take larger batches",
                stacklevel=2,
            )
    return found


def _cast(tree: Any, dtype: Any) -> Any:
    """Return a tree with its real numbers in another precision."""

    def cast(a: Array) -> Array:
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(cast, tree)


@partial(jax.jit, static_argnums=(5, 6))
def _minibatch_score(
    key: Array,
    x_t: Any,
    t: Any,
    mixture: Mixture,
    schedule: Schedule,
    batch_size: int,
    batches: int,
) -> ScoreEstimate:
    alpha, variance, *_ = schedule.rates(t)
    alpha, variance = jnp.reshape(alpha, (-1, 1)), jnp.reshape(variance, (-1, 1))

    def one(key):
        estimate = partial(_estimate, mixture.subsample(key, batch_size))
        return over_tiles(estimate, (x_t, alpha, variance), mixture.evaluation.tile(batch_size))

    score, squared_error, ess = jax.vmap(one)(jax.random.split(key, batches))
    error = jnp.sqrt(squared_error.sum(0)) / batches
    return ScoreEstimate(score.mean(0), error, ess.mean(0))


def _estimate(law: Mixture, operands: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Return a mini-batch's score, the delta-method variance of each coordinate, and the ESS.

    Var = J/(J-1) sum_i w_i^2 (s_i - s)^2 for normalized weights w_i and per-row scores s_i.
    """
    x_t, alpha, variance = (operand.T for operand in operands)
    points, log_weights = law.points()
    center = law.blocks.centers[:1]
    rows, x = points - center, x_t - alpha * center.T
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
