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
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jaxtyping import Array
from tqdm import tqdm

from mcscore.files import moved_into_place
from mcscore.flow import TimeClock
from mcscore.frames import Affine
from mcscore.generator import Generator
from mcscore.kernels import Dirac
from mcscore.mixtures import Mixture, mixture
from mcscore.networks import MLP
from mcscore.pairs import Pairs, generate_pairs
from mcscore.schedules import Linear
from mcscore.training import State, begin, descend

SCHEDULE = Linear(eps=0.01)
HALVED = (0.25, 0.5, 0.6)  # the learning rate, after these shares of the steps
LEGS = 50  # of the training, each saved


@dataclass(frozen=True)
class Settings:
    """The published settings; smaller ``pairs`` and ``steps`` are no longer as published.

    Args:
        width: Neurons of a hidden layer.
        chunk_size: Queries that share a mini-batch.
        pairs: Labelled pairs, all of them in every step.
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
    """Return the law and its labelled pairs, in standardised columns.

    >>> small = Settings(pairs=20, chunk_size=10, euler=5, minibatch=8)
    >>> law, pairs = label(jax.random.key(0), np.eye(9)[:, :2] + np.arange(9.0)[:, None], small)
    >>> pairs.x.shape
    (20, 2)
    """
    law = mixture(np.asarray(x)[: settings.rows], kernel=Dirac(), frame=Affine())
    pairs = generate_pairs(
        key, law, SCHEDULE, settings.pairs, minibatch=settings.minibatch, clock=TimeClock(),
        solver=diffrax.Euler(), steps=settings.euler, chunk_size=settings.chunk_size,
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

    Saved to ``checkpoint`` every fiftieth of the steps and resumed from there.

    >>> z = jax.random.normal(jax.random.key(0), (30, 2))
    >>> gen, losses = train(jax.random.key(1), Pairs(z, 3 * z), Settings(width=8, steps=60))
    >>> gen(z).shape, bool(losses[-1] < losses[0])
    ((30, 2), True)
    """
    z, x = (jnp.asarray(part) for part in pairs)
    network, steps = MLP.paper(settings.width), settings.steps
    halvings = {round(share * steps): 0.5 for share in HALVED}
    optimizer = optax.adam(optax.piecewise_constant_schedule(2e-3, halvings))
    state = begin(network.init(key, z.shape[1], z.dtype), optimizer, 0.0)
    path, losses = None if checkpoint is None else Path(checkpoint), np.zeros(0)
    if path is not None and path.exists():
        state, losses = _read(path, state)
    leg = -(-steps // LEGS)
    with tqdm(total=steps, initial=len(losses), desc="published", disable=not progress) as bar:
        while len(losses) < steps:
            count = min(leg, steps - len(losses))
            state, values = _descend(state, (z, x), count, network, optimizer)
            losses = np.concatenate([losses, np.asarray(values, float)])
            bar.update(count)
            if path is not None:
                _write(path, state, losses)
    return Generator(state.params, pairs.frame, network), losses


@partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def _descend(state: State, data: tuple, count: int, network: MLP, optimizer: Any) -> Any:
    def loss(params: Any) -> Array:
        z, x = data
        return jnp.mean(jnp.sum((network.apply(params, z) - x) ** 2, 1))

    def step(state: State, _: None) -> tuple[State, Array]:
        value, gradient = jax.value_and_grad(loss)(state.params)
        return descend(state, gradient, optimizer, 0.0)[0], value

    return jax.lax.scan(step, state, length=count)


def _write(path: Path, state: State, losses: np.ndarray) -> None:
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    with moved_into_place(path) as aside:
        safetensors.numpy.save_file(leaves | {"losses": losses}, aside)


def _read(path: Path, state: State) -> tuple[State, np.ndarray]:
    try:
        arrays = safetensors.numpy.load_file(path)
        losses = arrays.pop("losses")
    except (safetensors.SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error}); remove it to start anew") from error
    leaves, tree = jax.tree.flatten(state)
    found = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
    if [a.shape for a in found] != [a.shape for a in leaves]:
        raise ValueError(f"{path}: holds the training of another network; remove it to start anew")
    return jax.tree.unflatten(tree, found), losses
