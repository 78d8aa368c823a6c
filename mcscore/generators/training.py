r"""Supervised training: least squares on the labeled pairs, ``min_theta mean |net(z) - x|^2``.

(arXiv 2310.14458, Section 3.) One epoch is one compiled ``lax.scan``; between epochs the host only
looks at the losses, and keeps the state where it is told to: training resumes to the bit. The weights kept
are the running average (EMA) with the best validation loss.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float
from tqdm import trange

from mcscore._arrays import shapes
from mcscore._validation import as_key, at_least, of_type
from mcscore.generators.descent import State, begin, default_optimizer, descend
from mcscore.generators.generator import Generator, Given
from mcscore.generators.networks import MLP
from mcscore.generators.pairs import Pairs
from mcscore.jet.dense import product
from mcscore.parallel import Places, everywhere, own_share, places_of, without_context
from mcscore.storage import Checkpoint


class History(NamedTuple):
    """Losses per epoch (mean squared error per coordinate) and the epoch whose weights were kept."""

    train_loss: Float[np.ndarray, "epochs"]
    validation_loss: Float[np.ndarray, "epochs"]
    best_epoch: int
    stopped_early: bool
    encoder: Any = None  # the encoder's own History, where one was trained
    __repr__ = shapes


# See benchmarks/networks.py; the encoder is only where Newton's method starts.
DEFAULT_STEPS = dict(training=2100, encoder=1050)
LEGS = 50  # of a training that is kept, each saved


@dataclass(frozen=True)
class Training:
    """How a network is trained: the options of ``train``, checked."""

    network: MLP = MLP()
    optimizer: optax.GradientTransformation | None = None
    epochs: int | None = None
    batch_size: int | None = 512
    validation: float = 0.1
    patience: int | None = None
    ema: float = 0.995
    encoder: bool = False
    recalibrate: bool = True

    def __post_init__(self) -> None:
        of_type(MLP, "MLP()", network=self.network)
        if self.optimizer is not None:
            of_type(optax.GradientTransformation, "optax.adam(1e-3)", optimizer=self.optimizer)
        of_type((int, float), "0.1", validation=self.validation, ema=self.ema)
        counts = {name: getattr(self, name) for name in ("epochs", "batch_size", "patience")}
        at_least(1, **{name: value for name, value in counts.items() if value is not None})
        for name in ("validation", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")

    def held(self, pairs: int) -> int:
        """Return how many of the pairs are held out."""
        held = round(self.validation * pairs)
        if held >= pairs:
            raise ValueError(
                f"validation: expected a share that leaves some of {pairs} pairs, got {self.validation}"
            )
        return held


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
    ema: float = 0.995,
    encoder: bool = False,
    recalibrate: bool = True,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Generator, History]:
    """Return the generator that maps ``pairs.z`` to ``pairs.x`` best, and the losses on the way.

    Its mean and covariance are finally those of the labels (see ``recalibrated``).

    Args:
        key: Random key.
        pairs: Labeled pairs, from ``generate_pairs`` or by hand as ``Pairs(z, x)``.
        network: Architecture.
        optimizer: Any of optax; Muon with warm-up and cosine decay over all epochs by default.
        epochs: Passes over the pairs, at most; by default as many as make 2,100 steps, 1,050
            of the encoder, up to 300.
        batch_size: Pairs per step; None for all of them, as the paper does.
        validation: Share of the pairs held out; with 0 the weights of the last epoch are kept.
        patience: Epochs without a better validation loss before stopping; by default a fifth of all.
        ema: Decay per step of the averaged weights, 0 for none.
        encoder: Train a second network of the same architecture from ``pairs.x`` to ``pairs.z``.
        recalibrate: Give the generator's points the mean and covariance of the labels.
        checkpoint: Folder in which training is kept every fiftieth of its epochs, to resume from: to the bit.
        progress: Show a bar.
        mesh: Devices, each of which takes its share of every batch; by default the context's. The
            history is one device's up to rounding.

    Raises:
        ValueError: If the pairs do not match, are not finite, a setting is out of range, or ``checkpoint``
            holds another training.
        FloatingPointError: If the loss is not finite from the first epoch on.

    >>> z = jax.random.normal(jax.random.key(0), (200, 2))
    >>> gen, history = train(jax.random.key(1), Pairs(z, 2 * z), network=MLP(width=8, depth=1), epochs=2)
    >>> gen(z).shape, len(history.train_loss)
    ((200, 2), 2)
    """
    of_type(Pairs, "Pairs(z, x)", pairs=pairs)
    z, x = (jnp.asarray(part) for part in (pairs.z, pairs.x))
    c = None if pairs.c is None else jnp.asarray(pairs.c)
    if c is not None and (c.ndim != 2 or len(c) != len(z)):
        raise ValueError(f"pairs: expected conditions (n, k) for {len(z)} pairs, got {c.shape}")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"pairs: expected floating-point numbers, got {z.dtype}")
    if z.ndim != 2 or z.shape != x.shape or len(z) < 2:
        raise ValueError(
            f"pairs: expected z and x of one shape (n >= 2, d), got {z.shape}, {x.shape}"
        )
    for name, part in dict(z=z, x=x, c=c).items():
        if part is not None and not np.isfinite(part).all():
            raise ValueError(f"pairs: expected finite numbers, got others in pairs.{name}")
    options = Training(
        network, optimizer, epochs, batch_size, validation, patience, ema, encoder, recalibrate
    )
    options.held(len(z))
    places, key = places_of((), mesh=mesh), as_key(key)
    with without_context():
        return _trained(key, replace(pairs, z=z, x=x, c=c), options, checkpoint, progress, places)


def _trained(
    key: Array,
    pairs: Pairs,
    options: Training,
    checkpoint: str | os.PathLike | None,
    progress: bool,
    places: Places | None,
) -> tuple[Generator, History]:
    split_key, decoder_key, encoder_key = jax.random.split(key, 3)
    z, x, c, given = pairs.z, pairs.x, pairs.c, None
    if c is not None:
        given = Given(pairs.condition_frame, *_regressed(c, x))
        x = given.told_apart(x, c)
    pairs_left = (z, x) if c is None else (z, c, x)
    data, held_out = _divided(split_key, pairs_left, options.held(len(z)))
    problems = [_posed(decoder_key, data, held_out, "training", options, places)]
    if options.encoder:
        turned = held_out and _turned(held_out)
        problems.append(_posed(encoder_key, _turned(data), turned, "encoder", options, places))
    (params, history), *inverse = _solved(problems, checkpoint, progress)
    generator = Generator(params, pairs.frame, options.network, given=given)
    generator = recalibrated(generator, pairs) if options.recalibrate else generator
    if not options.encoder:
        return generator, history
    return replace(generator, encoder=inverse[0][0]), history._replace(encoder=inverse[0][1])


_Regression = tuple[Array, ...]  # inputs, conditions if there are any, and targets, row by row


def _turned(data: _Regression) -> _Regression:
    """Return the regression of inputs on targets."""
    return data[-1], *data[1:-1], data[0]


@jax.jit
def _regressed(c: Array, x: Array) -> tuple[Array, Array, Array]:
    """Return what labels are by conditions: slope (k, d), a root of what is left, and its inverse."""
    c, x = c - c.mean(0)[None], x - x.mean(0)[None]
    ridge = 1e-3 * len(c) * jnp.eye(c.shape[1], dtype=c.dtype)
    slope = jnp.linalg.solve(product(c.T, c) + ridge, product(c.T, x))
    left = x - product(c, slope)
    values, vectors = jnp.linalg.eigh(product(left.T, left) / len(left))
    root = jnp.sqrt(jnp.maximum(values, 1e-8 * values.max()))[None]
    return slope, product(vectors * root, vectors.T), product(vectors / root, vectors.T)


@partial(jax.jit, static_argnums=2)
def _divided(key: Array, pairs: _Regression, held: int) -> tuple[_Regression, _Regression | None]:
    """Return the pairs to train on and those held out, if any, in random order."""
    order = jax.random.permutation(key, len(pairs[0]))
    whole = tuple(part[order] for part in pairs)
    return tuple(a[held:] for a in whole), tuple(a[:held] for a in whole) if held else None


def recalibrated(generator: Generator, pairs: Pairs) -> Generator:
    """Return the generator whose output has the labels' mean and covariance.

    Least squares shrinks labels that it cannot explain. The generator's frame takes up an affine map
    of the network's coordinates under which its points for the pairs' noise have the moments of the
    pairs' labels, in which the noise of both cancels.
    """
    y = np.asarray(_outputs(generator, pairs.z, pairs.c))
    return replace(generator, frame=pairs.frame.recalibrated(y, np.asarray(pairs.x)))


@jax.jit
def _outputs(generator: Generator, z: Array, c: Array | None) -> Array:
    def one(row: tuple[Array, Array | None]) -> Array:
        z, c = row
        return generator.coordinates(z[None], None if c is None else c[None])[0]

    return jax.lax.map(one, (z, c), batch_size=10_000)


class _Problem(NamedTuple):
    """A regression ready to run: one epoch's program and all it takes, but not yet compiled."""

    name: str
    epoch: jax.stages.Lowered
    state: State
    key: Array
    data: _Regression
    held_out: _Regression | None
    epochs: int
    patience: int
    places: Places | None


class _Progress(NamedTuple):
    """Where a training stands; the best weights so far, their epoch and loss, and all losses (epochs, 2)."""

    state: State
    best: Any
    best_epoch: np.ndarray
    best_loss: np.ndarray
    losses: np.ndarray


def _posed(
    key: Array,
    data: _Regression,
    held_out: _Regression | None,
    name: str,
    options: Training,
    places: Places | None,
) -> _Problem:
    """Return the regression as a problem."""
    init_key, epoch_key = jax.random.split(key)
    network, rows = options.network, len(data[0])
    batch = min(options.batch_size or rows, rows)
    epochs = options.epochs or min(300, -(-DEFAULT_STEPS[name] // (rows // batch)))
    if epochs * (rows // batch) >= 2**31:
        raise ValueError(f"epochs: expected fewer than 2^31 steps, got {epochs} epochs")
    optimizer = options.optimizer or default_optimizer(epochs * (rows // batch))
    given = sum(part.shape[1] for part in data[1:-1])
    params = network.init(init_key, data[0].shape[1], data[0].dtype, given)
    state = begin(params, optimizer, options.ema)
    state, epoch_key, data, held_out = everywhere((state, epoch_key, data, held_out), places)
    chosen = (network, optimizer, batch, options.ema, places)
    program = _epoch.lower(state, epoch_key, data, held_out, *chosen)
    patience = options.patience or -(-epochs // 5)
    patience = patience if held_out else epochs
    return _Problem(name, program, state, epoch_key, data, held_out, epochs, patience, places)


def _solved(
    problems: list[_Problem], checkpoint: str | os.PathLike | None, progress: bool
) -> list[tuple[Any, History]]:
    """Solve all problems at once: on a CPU, one regression leaves the second core idle.

    JAX's settings belong to a thread: they were read when the programs were lowered, in the caller's.
    """
    stop, store = Event(), None
    if checkpoint is not None:  # a program's text has its network, optimizer and numbers in it
        settings = {
            "key": [p.key for p in problems],
            "pairs": [(p.data, p.held_out) for p in problems],
            "epochs": [p.epochs for p in problems],
            "patience": [p.patience for p in problems],
            "network, optimizer, batch_size or ema": [p.epoch.as_text() for p in problems],
            "start": [jax.tree.leaves(p.state) for p in problems],
        }
        store = Checkpoint(checkpoint, settings)
    side_by_side = 1 if problems[0].places else len(problems)  # processes send in one order
    with ThreadPoolExecutor(side_by_side) as pool:
        try:
            done = list(pool.map(lambda problem: _solve(problem, store, progress, stop), problems))
        finally:
            stop.set()  # one has failed or was interrupted: the other need not finish
    on_one = partial(
        jax.tree.map, lambda a: jnp.asarray(np.asarray(a))
    )  # device, from a mesh or a file
    return [(on_one(params), history) for params, history in done]


def _solve(
    problem: _Problem, store: Checkpoint | None, progress: bool, stop: Event
) -> tuple[Any, History]:
    """Return the parameters that fit best, and the losses on the way."""
    run, leg = problem.epoch.compile(), -(-problem.epochs // LEGS)
    at = _resumed(problem, store)
    bar = trange(
        len(at.losses), problem.epochs, desc=problem.name, disable=not progress, leave=False
    )
    for epoch in bar:
        if epoch - 1 - at.best_epoch >= problem.patience or stop.is_set():
            break
        key = jax.random.fold_in(problem.key, epoch)
        state, candidate, *loss = run(at.state, key, problem.data, problem.held_out)
        loss = np.array([[float(value) for value in loss]])
        at = at._replace(state=state, losses=np.concatenate([at.losses, loss]))
        if problem.held_out is None or loss[0, 1] < at.best_loss:
            at = at._replace(
                best=candidate, best_epoch=np.asarray(epoch), best_loss=np.asarray(loss[0, 1])
            )
        bar.set_postfix(validation=f"{loss[0, 1]:.2e}")
        if store and ((epoch + 1) % leg == 0 or epoch + 1 == problem.epochs):
            store.write_tree(problem.name, at)
    if not np.isfinite(at.best_loss):
        raise FloatingPointError(
            f"train: the loss was {'not' if problem.held_out is None else 'never'} finite"
            f"{' in the end' if problem.held_out is None else ''}; lower the optimizer's learning rate"
        )
    train_losses, validation_losses = at.losses.T
    stopped = len(at.losses) < problem.epochs
    return at.best, History(train_losses, validation_losses, int(at.best_epoch), stopped)


def _resumed(problem: _Problem, store: Checkpoint | None) -> _Progress:
    """Return where the training stands: at its start, or where its checkpoint left it."""
    best = jax.tree.map(np.array, problem.state.params)  # a copy: the state's memory is given away
    start = _Progress(problem.state, best, np.asarray(0), np.asarray(np.inf), np.zeros((0, 2)))
    at = store.read_tree(problem.name, start) if store else None
    if at is None:
        return start
    return at._replace(state=everywhere(jax.tree.map(jnp.asarray, at.state), problem.places))


@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8), donate_argnums=0)
def _epoch(state, key, data, held_out, network, optimizer, batch, ema, places):
    """Return the state after one pass, the averaged weights, and their losses.

    Without pairs held out the second loss is the first one again.
    """
    if places is None:
        return _pass(state, key, data, held_out, network, optimizer, batch, ema, ())
    mesh, axes = places
    return jax.shard_map(
        lambda state, key, data, held_out: _pass(
            state, key, data, held_out, network, optimizer, batch, ema, axes
        ),
        mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False,
    )(state, key, data, held_out)  # fmt: skip


def _pass(state, key, data, held_out, network, optimizer, batch, ema, axes):
    """Return what ``_epoch`` does; along a mesh's ``axes`` every device takes its share of each batch."""

    def loss(params, pairs, index):
        """Return the mean square over the pairs at ``index``, or a device's part of it."""
        if not axes:
            rows = pairs if index is None else tuple(part[index] for part in pairs)
            *inputs, targets = rows
            return jnp.mean((network.apply(params, *inputs) - targets) ** 2)
        index = jnp.arange(len(pairs[0])) if index is None else index
        own, counts = own_share(index, axes)
        *inputs, targets = (part[own] for part in pairs)
        squares = jnp.mean((network.apply(params, *inputs) - targets) ** 2, 1)
        return jnp.sum(jnp.where(counts, squares, 0)) / len(index)

    def total(parts):
        return jax.lax.psum(parts, axes) if axes else parts

    def step(carry, index):
        state, _ = carry
        index = None if batch == len(data[0]) else index
        value, gradient = total(jax.value_and_grad(loss)(state.params, data, index))
        return descend(state, gradient, optimizer, ema), value

    steps = len(data[0]) // batch
    order = jax.random.permutation(key, len(data[0]))[: steps * batch].reshape(steps, batch)
    (state, averaged), values = jax.lax.scan(step, (state, state.params), order)
    judged = values.mean() if held_out is None else total(loss(averaged, held_out, None))
    return state, averaged, values.mean(), judged
