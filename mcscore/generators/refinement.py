r"""Refining a generator: its density brought to the law's, which is known in closed form.

Least squares fixes where the generator ``G`` sends each ``z``; its density follows from the Jacobian,
which least squares sees only through neighboring points. Both densities are known along ``y = G(z)``,

    r(z) = log N(z; 0, I) - log |det dG/dz| - log p(G(z)),

and ``r = 0`` everywhere if and only if the generator's law is the data law. Every step draws fresh noise and
lowers a Huber loss of ``r``, with the squares on the pairs beside it, so that no mode is lost. Below a
twentieth of the determinant that the law asks for, ``r`` goes on as its tangent in the determinant: so it is
finite where the network folds, and pulls folds back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import trange

from mcscore._validation import as_key, at_least
from mcscore.flows.fields import Law
from mcscore.generators.descent import begin, default_optimizer, descend
from mcscore.generators.generator import Generator
from mcscore.generators.inversion import log_normal
from mcscore.generators.pairs import Pairs
from mcscore.generators.training import recalibrated
from mcscore.jet import stream
from mcscore.jet.sampling import draw
from mcscore.metrics import effective_sample_size
from mcscore.storage import Checkpoint

HUBER = 0.3  # nats: beyond, a point's pull no longer grows
SQUARES = 10.0  # weight of the squares on the pairs
FOLD = 0.05  # of the determinant that the law asks for: below, the logarithm goes on as its tangent
DECAY = 0.995  # of the averaged weights
TOGETHER = 100  # steps of one compiled scan
# Learning rate at its peak, and per step of the run: a short one cannot mend what large steps spoil.
PEAK, GAIN = 5e-3, 1.25e-6


class Agreement(NamedTuple):
    """How the generator's density compares with the law's, at draws from the law.

    Attributes:
        error: Mean absolute difference of the two log densities where certified, in nats.
        certified: Share of points where the generator's density is certified.
        effective_sample_size: What a sample of the generator is worth once weighted to the law, as a share:
            1 if the two laws are the same.
        folded: Share of noise at which the network folds: the determinant of its Jacobian is not positive.
            Points that this noise reaches are reached twice more, and the density certified there is
            one of several terms.
    """

    error: float
    certified: float
    effective_sample_size: float
    folded: float


class Refinement(NamedTuple):
    """Agreement before and after, and whether the refined weights were kept."""

    before: Agreement
    after: Agreement
    kept: bool


class _Progress(NamedTuple):
    """Where a refinement stands: rounds done, the descent's state, and its averaged weights."""

    round: Any
    state: Any
    averaged: Any


def agreement(key: Array, generator: Generator, law: Law, points: int = 1000) -> Agreement:
    """Compare the generator's density with the law's at ``points`` draws from either."""
    point_key, noise_key = jax.random.split(as_key(key))
    return _agreement_at(noise_key, generator, law, *_points(point_key, law, points))


def _points(key: Array, law: Law, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return draws from the law, ties not restored, and their conditions if it has any.

    Through the frame on the host: nothing is compiled.
    """
    whole = law.joint
    x = whole.frame.inverse(np.asarray(draw(key, whole.blocks, n)))
    return x[:, : law.dimension], x[:, law.dimension :] if law.condition_dimension else None


def _agreement_at(
    key: Array, generator: Generator, law: Law, x: np.ndarray, c: np.ndarray | None
) -> Agreement:
    found = generator.density(x, c)
    certified = np.asarray(found.certified)
    error = np.abs(np.asarray(found.log_prob) - np.asarray(law.log_prob(x, condition=c)))[certified]
    samples, log_q = generator.sample_and_log_prob(key, len(x), c)
    folded = np.isnan(np.asarray(log_q))
    log_weights = jnp.where(folded, -jnp.inf, law.log_prob(samples, condition=c) - log_q)
    size = jax.jit(effective_sample_size)(log_weights)  # one program, not fourteen
    mean = float(error.mean()) if len(error) else float("nan")
    shares = float(certified.mean()), float(size) / len(x), float(folded.mean())
    return Agreement(mean, *shares)


def refine(
    key: Array,
    generator: Generator,
    mixture: Law,
    pairs: Pairs,
    *,
    steps: int = 2000,
    batch_size: int = 128,
    optimizer: optax.GradientTransformation | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
) -> tuple[Generator, Refinement]:
    """Return the generator with its density brought closer to the law's, if that succeeds.

    The refined weights are kept if the densities agree better at 2,000 fresh draws from the law and no fewer
    of them (up to 0.2 %) are certified; else the generator comes back as it was. O(d) passes of the
    network and one evaluation of the law per point and step.

    Args:
        key: Random key.
        generator: Trained on ``pairs``.
        mixture: The law of the pairs.
        pairs: Labeled pairs.
        steps: Steps of the optimizer, rounded up to hundreds.
        batch_size: Fresh noise, and pairs, per step.
        optimizer: Any of optax; by default ``train``'s with a peak that grows with ``steps``, up to 5e-3.
        checkpoint: Folder in which every hundredth step is kept, to resume from: to the bit.
        progress: Show a bar.

    Raises:
        ValueError: If the law has no density (``Dirac()``), an argument is out of range, or ``checkpoint``
            holds another run.

    >>> import mcscore as mcs
    >>> law = mcs.mixture(jax.random.normal(key := jax.random.key(0), (50, 2)), kernel=mcs.Isotropic(0.5))
    >>> pairs = mcs.generate_pairs(key, law, mcs.Cosine(), 300)
    >>> gen, _ = mcs.train(key, pairs, network=mcs.MLP(width=16, depth=2), epochs=50)
    >>> gen, report = mcs.refine(key, gen, law, pairs, steps=100)
    >>> report.after.error < report.before.error or not report.kept
    True
    """
    mixture.require_width("refine")
    at_least(1, steps=steps, batch_size=batch_size)
    if generator.dimension != mixture.dimension:
        raise ValueError(
            f"mixture: expected {generator.dimension} columns as the generator, got {mixture.dimension}"
        )
    point_key, before_key, after_key, step_key = jax.random.split(as_key(key), 4)
    rounds = -(-steps // TOGETHER)
    total = rounds * TOGETHER
    optimizer = optimizer or default_optimizer(total, min(PEAK, GAIN * total))
    batch = min(batch_size, len(pairs.z))
    at = _Progress(0, begin(generator.params, optimizer, DECAY), generator.params)
    base, arrays = replace(generator, params=None, encoder=None), (pairs.z, pairs.c, pairs.x)
    store = None
    if checkpoint is not None:
        text = _steps.lower(at.state, step_key, arrays, mixture, base, optimizer, batch).as_text()
        settings: dict[str, Any] = dict(key=key, steps=steps, batch_size=batch, pairs=arrays)
        settings |= {"law": jax.tree.leaves(mixture), "generator": jax.tree.leaves(generator)}
        store = Checkpoint(checkpoint, settings | {"optimizer or network": text})
        kept = store.read_tree("refining", at)
        at = at if kept is None else _Progress(*jax.tree.map(jnp.asarray, kept))
    points = _points(point_key, mixture, 2000)
    before = _agreement_at(before_key, generator, mixture, *points)
    bar = trange(int(at.round), rounds, desc="refining", disable=not progress, leave=False)
    for k in bar:
        step = _steps(
            at.state, jax.random.fold_in(step_key, k), arrays, mixture, base, optimizer, batch
        )
        at = _Progress(k + 1, *step)
        if store:
            store.write_tree("refining", at)
    refined = recalibrated(replace(generator, params=at.averaged), pairs)
    after = _agreement_at(after_key, refined, mixture, *points)
    errors = np.nan_to_num([before.error, after.error], nan=np.inf)  # NaN: no point is certified
    kept = bool(errors[1] < errors[0] and after.certified >= before.certified - 0.002)
    return (refined if kept else generator), Refinement(before, after, kept)


@partial(jax.jit, static_argnums=(5, 6))
def _steps(state, key, pairs, law, generator, optimizer, batch):
    """Return the state after ``TOGETHER`` steps, and the averaged weights."""
    z, c, x = pairs

    def loss(params, noise_key, index):
        noise = jax.random.normal(noise_key, (batch, z.shape[1]), z.dtype)
        given = None if c is None else c[index]
        y, slopes = _jacobian(lambda z: generator.coordinates(z, given, params), noise)
        flat = jnp.linalg.slogdet(jax.lax.stop_gradient(slopes))[0] == 0  # has no gradient
        slopes = jnp.where(flat[:, None, None], jnp.eye(z.shape[1], dtype=z.dtype)[None], slopes)
        sign, log_det = jnp.linalg.slogdet(slopes)
        log_p = _log_density(law.queries(y, given), law) - law.log_evidence(given)
        difference = jnp.where(flat, 0, _excess(log_normal(noise) - log_p, log_det, sign))
        squares = jnp.mean((generator.coordinates(z[index], given, params) - x[index]) ** 2)
        return jnp.mean(optax.huber_loss(difference, delta=HUBER)) + SQUARES * squares

    def step(carry, step_key):
        state, _ = carry
        noise_key, pair_key = jax.random.split(step_key)
        index = jax.random.randint(pair_key, (batch,), 0, len(z))
        gradient = jax.grad(loss)(state.params, noise_key, index)
        return descend(state, gradient, optimizer, DECAY), None

    return jax.lax.scan(step, (state, state.params), jax.random.split(key, TOGETHER))[0]


def _excess(wanted: Array, log_det: Array, sign: Array) -> Array:
    """Return ``log(wanted / det)``, from logarithms; below ``FOLD`` of the wanted, its tangent.

    The tangent is one in the determinant: there the wanted, and with it the point, is held fixed.
    """
    log_ratio = log_det - jax.lax.stop_gradient(wanted)
    ratio = sign * jnp.exp(jnp.minimum(log_ratio, 1))  # no pull on what is folded by more
    tangent = 1 - math.log(FOLD) - ratio / FOLD
    return jnp.where(ratio < FOLD, tangent, wanted - log_det)


def _jacobian(function: Callable, z: Float[Array, "b d"]) -> tuple[Array, Float[Array, "b d d"]]:
    """Return what ``inversion.jacobian`` does, column by column: on a CPU its gradient takes a third."""
    value, push = jax.linearize(function, z)
    columns = [push(jnp.broadcast_to(e, z.shape)) for e in jnp.eye(z.shape[1], dtype=z.dtype)]
    return value, jnp.stack(columns, -1)


@jax.custom_vjp
def _log_density(y: Array, law: Law) -> Array:
    """Return ``log p(y)``, whose gradient is the score that the same pass over the rows gives.

    Not with respect to conditions, which stand behind the points.
    """
    return _log_density_and_score(y, law)[0]


def _log_density_and_score(y: Array, law: Law) -> tuple[Array, Array]:
    quick = replace(law.evaluation, careful=False)
    jet = stream(y, 1.0, 0.0, law.blocks, evaluation=quick)
    return jet.log_p, jnp.pad(jet.field, ((0, 0), (0, law.condition_dimension)))


_log_density.defvjp(
    _log_density_and_score, lambda score, cotangent: (cotangent[:, None] * score, None)
)
