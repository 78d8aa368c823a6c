r"""Stochastic systems: from observed paths to a one-step sampler of the next state.

The flow map of arXiv 2410.03108: with displacements ``dx = x_{t+1} - x_t`` the law ``p(dx | x_t,
parameters)`` is learned by a conditional generator ``dx = G(z, x_t, parameters)``, and a path is a scan over
it,

    x_{t+1} = x_t + G(z_t, x_t, parameters),    z_t ~ N(0, I).

Displacements, not states, so that the network resolves them however short the time step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mcscore._arrays import is_traced, pytree, shapes
from mcscore._numbers import numbers
from mcscore._validation import Table, as_key, at_least
from mcscore.frames import Affine, Gaussianize
from mcscore.generators.generator import Generator
from mcscore.generators.networks import MLP
from mcscore.mixtures.selection import Auto
from mcscore.pipeline import fit

TRANSITIONS = 2_000_000  # at most, drawn at random: a drift is the smallest part of a step
MOST_ROWS = 100_000, 60_000  # stored of a law of up to three columns, and of more
LABELS = dict(tolerance=1e-3)  # of the step's deviation, far below what the data know of it


@pytree()
@dataclass(frozen=True, eq=False)
class Dynamics:
    """A one-step sampler of the next state of a stochastic system. Build it with ``fit_dynamics``.

    Attributes:
        generator: The network of displacements, given the state and the parameters.
    """

    generator: Generator
    __repr__ = shapes

    def __post_init__(self) -> None:
        given = getattr(self.generator, "given", True)  # JAX puts placeholders into pytrees
        if given is None:
            raise ValueError(
                "generator: expected one of fit_dynamics, given the state, got none given"
            )

    @property
    def dimension(self) -> int:
        """Number of the state's coordinates."""
        return self.generator.dimension

    def step(self, key: Array, x: Any, parameters: Any = None) -> Float[Array, "m d"]:
        """Return a next state for each of the states ``x`` (m, d), with parameters (p,) or (m, p)."""
        return self.rollout(key, x, 1, parameters)[1]

    def rollout(
        self, key: Array, x0: Any, steps: int, parameters: Any = None
    ) -> Float[Array, "times m d"]:
        """Return paths (steps + 1, m, d) from the states ``x0`` (m, d), which come first.

        One forward pass per step, under ``lax.scan``; outside the states of training the network
        extrapolates, of which a warning tells at the start, and nothing later.

        Raises:
            ValueError: If states or parameters are not finite or do not fit those of training, or ``steps``
                is negative.
        """
        at_least(0, steps=steps)
        x0 = jnp.asarray(_states(x0, self.dimension, "x0"), self.generator.dtype)
        count = self.generator.condition_dimension - self.dimension
        if (parameters is None) != (count == 0):
            raise ValueError(f"parameters: expected {count or 'no'} parameters, got {parameters}")
        if count:
            parameters = jnp.asarray(_states(parameters, count, "parameters"), x0.dtype)
            if len(parameters) not in (1, len(x0)):
                raise ValueError(
                    f"parameters: expected one set, or one for each of {len(x0)}, got {len(parameters)}"
                )
            parameters = jnp.broadcast_to(parameters, (len(x0), count))
        known = x0 if parameters is None else jnp.concatenate([x0, parameters], 1)
        if self.generator.law is not None and len(x0):
            self.generator.law.warn_of(self.generator.conditions(known))
        return _rollout(self, as_key(key), x0, parameters, int(steps))


@partial(jax.jit, static_argnums=4)
def _rollout(law: Dynamics, key: Array, x0: Array, parameters: Array | None, steps: int) -> Array:
    generator = law.generator
    assert generator.given is not None  # made by ``fit_dynamics``
    frame = generator.given.frame

    def step(x: Array, k: Array) -> tuple[Array, Array]:
        z = jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)
        c = x if parameters is None else jnp.concatenate([x, parameters], 1)
        y = generator.coordinates(z, frame.forward(c))
        x = x + generator.frame.restore(generator.frame.inverse(y))
        return x, x

    return jnp.concatenate([x0[None], jax.lax.scan(step, x0, jnp.arange(steps))[1]])


def _states(x: Any, d: int, name: str) -> Any:
    found: Any = x if isinstance(x, jax.Array) else numbers(x, name)
    found = found.reshape(1) if found.ndim == 0 else found
    if found.ndim == 1 and (len(found) == d or d == 1):
        found = found.reshape(-1, d)
    if found.ndim != 2 or found.shape[1] != d:
        raise ValueError(f"{name}: expected shape (m, {d}), got {found.shape}")
    if not is_traced(found) and not np.isfinite(np.asarray(found)).all():
        raise ValueError(f"{name}: expected finite numbers, got some that are not")
    return found


def fit_dynamics(
    key: Array,
    paths: Any,
    parameters: Any = None,
    *,
    transitions: int = TRANSITIONS,
    **options: Any,
) -> Dynamics:
    """Return a one-step sampler of the next state, from paths (m, time, d) of a system that is Markov.

    Section 3 of arXiv 2410.03108, with labels by the exact conditional law instead of neighbors.

    Args:
        key: Random key.
        paths: Observed states (m, time, d), at equal steps of time; (m, time) for one coordinate.
        parameters: Parameters of each path, (m, p), if the system has any.
        transitions: How many pairs of successive states to learn from, at most, drawn at random.
        **options: Options of ``fit``, whose table holds the displacements. By default the network has 4
            layers of 48 neurons up to two coordinates, else of 64, and displacements are standardized, which
            keeps a step cheap, unless Gaussianizing them is clearly better.

    Raises:
        ValueError: If ``paths`` is no such array of finite numbers, or ``parameters`` have not a row for
            each.

    >>> x = np.cumsum(np.random.default_rng(0).standard_normal((200, 5, 1)), 1)
    >>> quick = dict(pairs=500, epochs=2, refine=0, encoder=False)
    >>> walk = fit_dynamics(jax.random.key(0), x, **quick)
    >>> walk.rollout(jax.random.key(1), np.zeros((10, 1)), steps=3).shape
    (4, 10, 1)
    """
    states = np.asarray(numbers(paths, "paths"), np.float64)
    states = states[..., None] if states.ndim == 2 else states
    if states.ndim != 3 or states.shape[1] < 2 or 0 in states.shape:
        raise ValueError(
            f"paths: expected shape (paths, times, coordinates) with two times at least, got {states.shape}"
        )
    if (bad := np.argwhere(~np.isfinite(states))).size:
        raise ValueError(
            f"paths: expected finite numbers, got one that is not at {bad[0].tolist()}"
        )
    at_least(10, transitions=transitions)
    m, times, d = states.shape
    now = states[:, :-1].reshape(-1, d)
    moved = np.diff(states, axis=1).reshape(-1, d)
    if parameters is not None:
        given = np.asarray(numbers(parameters, "parameters"), np.float64)
        given = given[:, None] if given.ndim == 1 else given
        if given.ndim != 2 or len(given) != m:
            raise ValueError(f"parameters: expected shape ({m}, p), got {given.shape}")
        now = np.concatenate([now, np.repeat(given, times - 1, 0)], 1)
    pick, key = jax.random.split(as_key(key))
    rows = np.arange(len(now))
    if len(now) > transitions:
        rows = np.asarray(jax.random.permutation(pick, len(now)))[:transitions]
    quick = MLP(width=48 if d <= 2 else 64, depth=4)
    most = MOST_ROWS[now.shape[1] + d > 3]
    kernel = Auto(frames=(Affine(whiten=True), Gaussianize()), most_rows=most)
    usual: dict[str, Any] = dict(
        network=quick, kernel=kernel, labelling=LABELS, encoder=False, refine=0
    )
    own = [f"state {j}" for j in range(d)]
    names = [*own, *(f"parameter {j}" for j in range(now.shape[1] - d))]
    moves = Table.of(moved[rows], columns=[f"step of {name}" for name in own], name="paths")
    given = Table.of(now[rows], columns=names, name="paths")
    return Dynamics(fit(key, moves, condition=given, **(usual | options)))
