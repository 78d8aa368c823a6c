r"""Supervised training: least squares on the labelled pairs, ``min_theta mean |net(z) - x|^2``.

(arXiv 2310.14458, Section 3.) One epoch is one compiled ``lax.scan``; between epochs the host only
looks at the losses. The weights kept are the running average (EMA) with the best validation loss.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from threading import Event
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from mcscore.generator import Generator
from mcscore.networks import MLP
from mcscore.pairs import Pairs
from mcscore.shown import shapes


class History(NamedTuple):
    """Losses per epoch (mean squared error per coordinate) and the epoch whose weights were kept."""

    train_loss: Float[np.ndarray, "epochs"]
    validation_loss: Float[np.ndarray, "epochs"]
    best_epoch: int
    stopped_early: bool
    encoder: Any = None  # the encoder's own History, where one was trained
    __repr__ = shapes


class State(NamedTuple):
    """Where the descent stands: parameters, the optimizer's memory and that of their running average."""

    params: Any
    optimizer: Any
    average: Any


@partial(jax.jit, static_argnums=(1, 2))  # one program instead of one per shape
def begin(params: Any, optimizer: optax.GradientTransformation, ema: float) -> State:
    """Return the state before the first step."""
    return State(params, optimizer.init(params), optax.ema(ema).init(params))


def descend(
    state: State, gradient: Any, optimizer: optax.GradientTransformation, ema: float
) -> tuple[State, Any]:
    """Return the state after one step, and the averaged parameters (decay ``ema`` per step)."""
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in int32
        updates, memory = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged, average = optax.ema(ema).update(params, state.average)
    return State(params, memory, average), averaged


# Of the optimizer, see benchmarks/generator.py. The encoder is only where Newton's method starts.
DEFAULT_STEPS, PEAK = dict(training=3000, encoder=1500), 0.02
# Newton-Schulz iterations of Muon: on small networks they cost more than the gradient.
ORTHOGONALISING = 3


@lru_cache(maxsize=32)  # the same optimizer object for the same settings: no recompilation
def default_optimizer(steps: int, peak: float = PEAK) -> optax.GradientTransformation:
    """Return Muon with a warm-up over 5 % of ``steps`` and cosine decay to a hundredth of ``peak``.

    Muon (Jordan et al. 2024) orthogonalises the updates of matrices.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=max(1, steps // 20), decay_steps=max(2, steps), end_value=peak / 100
    )
    return optax.contrib.muon(schedule, ns_steps=ORTHOGONALISING)


def train(
    key: Array,
    pairs: Pairs,
    *,
    network: MLP = MLP(),
    optimizer: optax.GradientTransformation | None = None,
    epochs: int | None = None,
    batch_size: int | None = 512,
    validation: float = 0.1,
    patience: int | None = None,
    ema: float = 0.998,
    encoder: bool = False,
    progress: bool = False,
) -> tuple[Generator, History]:
    """Return the generator that maps ``pairs.z`` to ``pairs.x`` best, and the losses on the way.

    Its mean and covariance are finally those of the labels (see ``training.recalibrate``).

    Args:
        key: Random key.
        pairs: Labelled pairs, from ``generate_pairs`` or by hand as ``Pairs(z, x)``.
        network: Architecture.
        optimizer: Any of optax; Muon with warm-up and cosine decay over all epochs by default.
        epochs: Passes over the pairs, at most; by default as many as make 3,000 steps, 1,500
            of the encoder, up to 300.
        batch_size: Pairs per step; None for all of them, as the paper does.
        validation: Share of the pairs held out.
        patience: Epochs without a better validation loss before stopping; by default a fifth of all.
        ema: Decay per step of the averaged weights, 0 for none.
        encoder: Train a second network of the same architecture from ``pairs.x`` to ``pairs.z``.
        progress: Show a bar.

    Raises:
        ValueError: If the pairs do not match, are not finite, or a setting is out of range.
        FloatingPointError: If the loss is not finite from the first epoch on.

    >>> z = jax.random.normal(jax.random.key(0), (200, 2))
    >>> gen, history = train(jax.random.key(1), Pairs(z, 2 * z), network=MLP(width=8, depth=1), epochs=2)
    >>> gen(z).shape, len(history.train_loss)
    ((200, 2), 2)
    """
    z, x = (jnp.asarray(part) for part in pairs)
    if z.ndim != 2 or z.shape != x.shape or len(z) < 2:
        raise ValueError(
            f"pairs: expected z and x of one shape (n >= 2, d), got {z.shape}, {x.shape}"
        )
    if not (np.isfinite(z).all() and np.isfinite(x).all()):
        raise ValueError("pairs: expected finite numbers")
    for name, value, fits in (
        ("epochs", epochs, epochs is None or epochs >= 1),
        ("batch_size", batch_size, batch_size is None or batch_size >= 1),
        ("validation", validation, 0 <= validation < 1),
        ("patience", patience, patience is None or patience >= 1),
        ("ema", ema, 0 <= ema < 1),
    ):
        if not fits:
            raise ValueError(f"{name}: out of range, got {value}")

    split_key, decoder_key, encoder_key = jax.random.split(key, 3)
    data, held_out = _divided(split_key, z, x, round(validation * len(z)))
    options = _Options(network, optimizer, epochs, batch_size, patience, ema)
    problems = [_posed(decoder_key, data, held_out, "training", options)]
    if encoder:
        problems.append(_posed(encoder_key, data[::-1], held_out[::-1], "encoder", options))
    (params, history), *inverse = _solved(problems, progress)
    generator = recalibrate(Generator(params, pairs.frame, network), pairs)
    if not encoder:
        return generator, history
    return replace(generator, encoder=inverse[0][0]), history._replace(encoder=inverse[0][1])


@partial(jax.jit, static_argnums=3)
def _divided(key: Array, z: Array, x: Array, held: int) -> tuple[_Regression, _Regression]:
    """Return the pairs to train on and those held out, in random order; all of both if none are."""
    order = jax.random.permutation(key, len(z))
    z, x = z[order], x[order]
    data = z[held:], x[held:]
    return data, (z[:held], x[:held]) if held else data


def recalibrate(generator: Generator, pairs: Pairs) -> Generator:
    """Return the generator whose output has the labels' mean and covariance.

    Least squares shrinks labels that it cannot explain. The generator's frame takes up an affine map
    of the network's coordinates under which its points for the pairs' noise have the moments of the
    pairs' labels, in which the noise of both cancels. Unchanged without a frame.
    """
    if pairs.frame is None:
        return generator
    y = np.asarray(_outputs(generator.params, jnp.asarray(pairs.z), generator.network))
    return replace(generator, frame=pairs.frame.recalibrated(y, np.asarray(pairs.x)))


@partial(jax.jit, static_argnums=2)
def _outputs(params: Any, z: Array, network: MLP) -> Array:
    return jax.lax.map(lambda row: network.apply(params, row[None])[0], z, batch_size=10_000)


_Regression = tuple[Array, Array]  # inputs and targets, row by row


class _Options(NamedTuple):
    network: MLP
    optimizer: optax.GradientTransformation | None
    epochs: int | None
    batch_size: int | None
    patience: int | None
    ema: float


class _Problem(NamedTuple):
    """A regression ready to run: one epoch's program and all it takes, but not yet compiled."""

    name: str
    epoch: jax.stages.Lowered
    state: State
    keys: list[Array]
    data: _Regression
    held_out: _Regression
    patience: int


def _posed(
    key: Array, data: _Regression, held_out: _Regression, name: str, options: _Options
) -> _Problem:
    """Return the regression as a problem."""
    network, optimizer, epochs, batch_size, patience, ema = options
    init_key, epoch_key = jax.random.split(key)
    batch = min(batch_size or len(data[0]), len(data[0]))
    steps = len(data[0]) // batch
    epochs = epochs or min(300, -(-DEFAULT_STEPS[name] // steps))
    optimizer = optimizer or default_optimizer(epochs * steps)
    state = begin(network.init(init_key, data[0].shape[1], data[0].dtype), optimizer, ema)
    keys = [jax.random.fold_in(epoch_key, epoch) for epoch in range(epochs)]
    program = _epoch.lower(state, keys[0], data, held_out, network, optimizer, batch, ema)
    return _Problem(name, program, state, keys, data, held_out, patience or -(-epochs // 5))


def _solved(problems: list[_Problem], progress: bool) -> list[tuple[Any, History]]:
    """Solve all problems at once: on a CPU, one regression leaves the second core idle.

    JAX's settings belong to a thread: they were read when the programs were lowered, in the caller's.
    """
    stop = Event()
    with ThreadPoolExecutor(len(problems)) as pool:
        try:
            return list(pool.map(lambda problem: _solve(problem, progress, stop), problems))
        finally:
            stop.set()  # one has failed or was interrupted: the other need not finish


def _solve(problem: _Problem, progress: bool, stop: Event) -> tuple[Any, History]:
    """Return the parameters that fit best, and the losses on the way."""
    run, state = problem.epoch.compile(), problem.state
    best, best_loss, best_epoch, losses = state.params, np.inf, 0, []
    bar = tqdm(problem.keys, problem.name, disable=not progress, leave=False)
    for epoch, key in enumerate(bar):
        state, candidate, train_loss, loss = run(state, key, problem.data, problem.held_out)
        losses.append((float(train_loss), float(loss)))
        if losses[-1][1] < best_loss:
            best, best_loss, best_epoch = candidate, losses[-1][1], epoch
        bar.set_postfix(validation=f"{losses[-1][1]:.2e}")
        if epoch - best_epoch >= problem.patience or stop.is_set():
            break
    if not np.isfinite(best_loss):
        raise FloatingPointError(
            "train: the loss was never finite; lower the optimizer's learning rate"
        )
    train_losses, validation_losses = np.array(losses).T
    stopped = len(losses) < len(problem.keys)
    return best, History(train_losses, validation_losses, best_epoch, stopped)


@partial(jax.jit, static_argnums=(4, 5, 6, 7), donate_argnums=0)
def _epoch(state, key, data, held_out, network, optimizer, batch, ema):
    """Return the state after one pass, the averaged weights, and their losses."""
    z, x = data

    def loss(params, z, x):
        return jnp.mean((network.apply(params, z) - x) ** 2)

    def step(carry, index):
        state, _ = carry
        value, gradient = jax.value_and_grad(loss)(state.params, z[index], x[index])
        return descend(state, gradient, optimizer, ema), value

    steps = len(z) // batch
    order = jax.random.permutation(key, len(z))[: steps * batch].reshape(steps, batch)
    (state, averaged), values = jax.lax.scan(step, (state, state.params), order)
    return state, averaged, values.mean(), loss(averaged, *held_out)
