"""The method as published, to compare with: mini-batches, noise floor, Euler steps, full-batch Adam.

Settings of the public scripts behind arXiv 2310.14458 (its Sections 3 and 4):

    law       the first 200,000 rows themselves (``Dirac``), never finer than sigma(0) = 0.1
    schedule  alpha = 1 - 0.99 t, sigma^2 = 0.01 + 0.99 t
    labels    500 Euler steps in t; 1,000 rows drawn once per chunk of 5,000 (MINIBOONE: 2,000) queries
    network   d - W - W - d, tanh; W = 256, 512, 1024, 1400 for POWER, GAS, HEPMASS, MINIBOONE
    training  all 200,000 pairs in every one of 20,000 steps of Adam at 2e-3, halved at 5, 10 and 12 thousand

Computed by this library's own streams, so its seconds are the method's, not those of its scripts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array

from mcscore import generators
from mcscore.flows.clocks import TimeClock
from mcscore.flows.solvers import Euler
from mcscore.frames import Affine
from mcscore.generators.descent import halving_adam
from mcscore.generators.generator import Generator
from mcscore.generators.networks import MLP
from mcscore.generators.pairs import Pairs
from mcscore.mixtures import Dirac, Mixture, mixture
from mcscore.schedules import Linear

SCHEDULE = Linear(eps=0.01)
HALVED = (0.25, 0.5, 0.6)  # the learning rate, after these shares of the steps


@dataclass(frozen=True)
class Settings:
    """The published settings; smaller ``pairs`` and ``steps`` are no longer as published.

    Args:
        width: Neurons of a hidden layer.
        chunk_size: Queries that share a mini-batch.
        pairs: Labeled pairs, all of them in every step.
        steps: Steps of Adam.
        euler: Steps of the reverse ODE.
        minibatch: Rows drawn per chunk.
        rows: Training rows used, from the first.
    """

    width: int = 256
    chunk_size: int = 5000
    pairs: int = 200_000
    steps: int = 20_000
    euler: int = 500
    minibatch: int = 1000
    rows: int = 200_000


WIDTHS = {"power": 256, "gas": 512, "hepmass": 1024, "miniboone": 1400}


def label(
    key: Array, x: Any, settings: Settings, *, checkpoint: Any = None, progress: bool = False
) -> tuple[Mixture, Pairs]:
    """Return the law and its labeled pairs, in standardized columns.

    >>> import jax
    >>> small = Settings(pairs=20, chunk_size=10, euler=5, minibatch=8)
    >>> law, pairs = label(jax.random.key(0), np.eye(9)[:, :2] + np.arange(9.0)[:, None], small)
    >>> pairs.x.shape
    (20, 2)
    """
    law = mixture(np.asarray(x)[: settings.rows], kernel=Dirac(), frame=Affine())
    pairs = generators.generate_pairs(
        key, law, SCHEDULE, settings.pairs, minibatch=settings.minibatch, clock=TimeClock(matched=False),
        solver=Euler(), steps=settings.euler, chunk_size=settings.chunk_size,
        error_sample=0, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip
    return law, pairs


def train(
    key: Array,
    pairs: Pairs,
    settings: Settings,
    *,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
) -> tuple[Generator, np.ndarray]:
    """Return the generator after all steps and the loss of every step, ``mean_i |net(z_i) - x_i|^2``.

    Kept in the folder ``checkpoint`` every fiftieth of the steps and resumed from there.

    >>> import jax
    >>> z = jax.random.normal(jax.random.key(0), (30, 2))
    >>> gen, losses = train(jax.random.key(1), Pairs(z, 3 * z), Settings(width=8, steps=60))
    >>> gen(z).shape, bool(losses[-1] < losses[0])
    ((30, 2), True)
    """
    steps = settings.steps
    halvings = tuple(round(share * steps) for share in HALVED)
    generator, history = generators.train(
        key,
        pairs,
        network=MLP.paper(settings.width),
        optimizer=halving_adam(2e-3, halvings),
        epochs=steps,
        batch_size=None,
        validation=0.0,
        ema=0.0,
        recalibrate=False,
        checkpoint=checkpoint,
        progress=progress,
    )
    # Of the squared distance, not per coordinate; Adam's steps do not depend on the factor.
    return generator, history.train_loss * generator.dimension
