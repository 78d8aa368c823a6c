"""The descent: one step of any of optax's optimizers, with a running average of the parameters."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import optax

PEAK = 0.02  # of the learning rate, see benchmarks/generator.py
# Newton-Schulz iterations of Muon: on small networks they cost more than the gradient.
ORTHOGONALIZING = 3


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


@lru_cache(maxsize=32)  # the same optimizer object for the same settings: no recompilation
def default_optimizer(steps: int, peak: float = PEAK) -> optax.GradientTransformation:
    """Return Muon with a warm-up over 5 % of ``steps`` and cosine decay to a hundredth of ``peak``.

    Muon (Jordan et al. 2024) orthogonalizes the updates of matrices.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, warmup_steps=max(1, steps // 20), decay_steps=max(2, steps), end_value=peak / 100
    )
    return optax.contrib.muon(schedule, ns_steps=ORTHOGONALIZING)


@lru_cache(maxsize=32)
def halving_adam(rate: float, after: tuple[int, ...]) -> optax.GradientTransformation:
    """Return Adam whose learning rate is halved ``after`` these steps."""
    return optax.adam(optax.piecewise_constant_schedule(rate, dict.fromkeys(after, 0.5)))
