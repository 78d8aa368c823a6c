r"""What is read off the mixture at a query: its jet, and vector fields as posterior averages.

Diffused to ``x_t = alpha x_0 + sigma z``, the component of row ``m`` is, in its block's basis, a Gaussian
``N(x_t; alpha m, diag(1/lambda))`` at every time, ``lambda = 1 / (alpha^2 v + sigma^2)``. With ``w_i`` the
posterior weight of row i, a softmax over rows, everything is an average over rows:

    log p           log-sum-exp of the logits
    vector field    E_w[ A x + B m ]           (score, denoiser, velocity: a ``Reading``)
    lap log p       -sum(lambda) + sum(alpha^2 lambda^2 Var_w[m])

Jets of disjoint parts of the data *merge* (law of total variance): blocks of a scan, several devices and
mini-batches differ only in what is merged. The Laplacian is that of ``log p``, not of ``p``:
``lap p / p - |grad|^2`` cancels catastrophically far from the data, the variance does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mcscore._arrays import pytree


class Jet(NamedTuple):
    """Log density, vector field and Laplacian of the log density at each query.

    ``field`` is the score unless another reading was asked for; ``laplacian`` is None unless asked for.
    """

    log_p: Float[Array, "b"]
    field: Float[Array, "b d"]
    laplacian: Float[Array, "b"] | None


def merge(first: Jet, second: Jet, axis: int = -1) -> Jet:
    """Return the jet of the sum of two unnormalized laws. Associative and commutative.

    Masses add; fields average with the masses as weights; Laplacians average too, plus the variance
    between the two gradients (law of total variance), so ``field`` must be the score when they are kept.

    Args:
        first: Of one part of the data.
        second: Of another part.
        axis: Axis of ``field`` that runs over coordinates.

    >>> part = Jet(jnp.zeros(1), jnp.ones((1, 2)), jnp.zeros(1))
    >>> float(merge(part, part).log_p[0])  # log 2
    0.693...
    """
    log_p = jnp.logaddexp(first.log_p, second.log_p)
    top = jax.lax.stop_gradient(jnp.maximum(first.log_p, second.log_p))
    top = jnp.where(jnp.isneginf(top), 0, top)  # both empty: no weights, not NaN
    w1, w2 = jnp.exp(first.log_p - top), jnp.exp(second.log_p - top)
    total = w1 + w2  # not exp(log_p - top): far away its rounding is no small factor
    total = jnp.where(total > 0, total, 1)
    w1, w2 = w1 / total, w2 / total
    along1, along2 = jnp.expand_dims(w1, axis), jnp.expand_dims(w2, axis)
    field = along1 * first.field + along2 * second.field
    if first.laplacian is None or second.laplacian is None:
        return Jet(log_p, field, None)
    between = w1 * w2 * jnp.sum((first.field - second.field) ** 2, axis)
    return Jet(log_p, field, w1 * first.laplacian + w2 * second.laplacian + between)


def merge_over(jet: Jet, name: str) -> Jet:
    """Return ``merge`` of the jets of all devices along an axis of their mesh, ``field`` (b, d)."""
    top = jax.lax.pmax(jax.lax.stop_gradient(jet.log_p), name)
    reference = jnp.where(jnp.isneginf(top), 0, top)
    mass = jnp.exp(jet.log_p - reference)
    total = jax.lax.psum(mass, name)
    share = mass / jnp.where(total > 0, total, 1)
    field = jax.lax.psum(share[:, None] * jet.field, name)
    log_p = reference + jnp.log(total)
    if jet.laplacian is None:
        return Jet(log_p, field, None)
    between = jnp.sum((jet.field - field) ** 2, 1)
    return Jet(log_p, field, jax.lax.psum(share * (jet.laplacian + between), name))


class Coefficients(NamedTuple):
    """Of a vector field, at each time: scalars or one per query.

    In a direction of a block's basis with kernel variance ``v`` and ``lambda = 1 / (alpha^2 v + sigma^2)``,

        A = (slope v + constant) lambda,    B = offset - alpha A.

    ``offset`` is ``alpha A + B``, the coefficient of the block's center, in closed form so that
    nothing cancels.
    """

    slope: Array
    constant: Array
    offset: Array


@dataclass(frozen=True)
class Reading:
    """Base of vector fields ``E_w[A x + B m]``: a registered pytree that knows its coefficients.

    ``careful`` says whether float32's loss of digits matters, so that queries which suffer from it are
    computed in float64.
    """

    careful: ClassVar[bool] = True

    def at(self, d_alpha: Array, d_variance: Array) -> Reading:
        """Return the reading at times of these rates; a reading that needs none is the same."""
        return self

    def coefficients(self, alpha: Array) -> Coefficients:
        """Return the coefficients where the signal has the scale ``alpha``."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(...)")


@pytree()
@dataclass(frozen=True)
class Score(Reading):
    """``grad log p = E_w[-lambda (x - alpha m)]``."""

    def coefficients(self, alpha: Array) -> Coefficients:
        """Return those of ``A = -lambda``, ``B = alpha lambda``."""
        return Coefficients(jnp.zeros_like(alpha), -jnp.ones_like(alpha), jnp.zeros_like(alpha))


@pytree()
@dataclass(frozen=True)
class Denoiser(Reading):
    """``E[x_0 | x_t] = E_w[m + alpha v lambda (x - alpha m)]``, regular also at ``alpha = 0``."""

    def coefficients(self, alpha: Array) -> Coefficients:
        """Return those of ``A = alpha v lambda``, ``B = 1 - alpha^2 v lambda``."""
        return Coefficients(alpha, jnp.zeros_like(alpha), jnp.ones_like(alpha))


@pytree()
@dataclass(frozen=True)
class Velocity(Reading):
    """``dx/dt = alpha' E[x_0 | x_t] + sigma' E[z | x_t]``, regular at both ends of time.

    Equal to ``b x - g^2/2 score`` (arXiv 2310.14458, Section 3) without its division by ``alpha``. The
    flow's own error is far larger than float32's rounding.

    Args:
        d_alpha: ``d alpha/dt``.
        d_variance: ``d sigma^2/dt``.
    """

    careful: ClassVar[bool] = False
    d_alpha: Any = None
    d_variance: Any = None

    def at(self, d_alpha: Array, d_variance: Array) -> Velocity:
        """Return the velocity at times of these rates."""
        return Velocity(d_alpha, d_variance)

    def coefficients(self, alpha: Array) -> Coefficients:
        """Return those of ``A = (alpha' alpha v + (sigma^2)'/2) lambda``, ``B = alpha' - alpha A``."""
        return Coefficients(self.d_alpha * alpha, self.d_variance / 2, self.d_alpha)
