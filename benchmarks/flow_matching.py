"""A rival in JAX for ``rivals.py``: conditional flow matching with the network of our generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcscore as mcs


class Rival(NamedTuple):
    """A trained model: draws in the user's units, log density there (or None), a note."""

    sample: Callable[[Any, int], Any]
    log_prob: Callable[[Any], Any] | None
    note: str = ""


def standardized(train):
    """Return the frame of unit columns, the rows in it (float64), and log |det| of the way there."""
    frame = mcs.Affine().fit(np.asarray(train, np.float64))
    log_det = float(np.asarray(frame.log_det(np.zeros((1, train.shape[1]))))[0])
    return frame, frame.forward(np.asarray(train, np.float64)), log_det


def flow_matching(train, quick) -> Rival:
    """Conditional flow matching along straight paths (Lipman et al. 2023), with our network's size."""
    frame, x, log_det = standardized(train)
    d, small = x.shape[1], dict(width=8, depth=1) if quick else {}
    network = mcs.MLP(residual=False, **small)
    steps, batch, leg = (20, 64, 10) if quick else (30_000, 256, 1000)
    parts = mcs.datasets.split(jax.random.key(1), x, 0.9, 0.1)
    inner, held = (jnp.asarray(part, jnp.float32) for part in parts)
    params = network.init(jax.random.key(0), d + 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 20, steps, 1e-5)
    optimizer = optax.adam(rate)

    def velocity(params, y, t):
        return network.apply(params, jnp.concatenate([y, jnp.full_like(y[:, :1], t)], 1))[:, :d]

    def loss(params, key, rows):
        time_key, noise_key = jax.random.split(key)
        t = jax.random.uniform(time_key, (len(rows), 1))
        z = jax.random.normal(noise_key, rows.shape)
        inputs = jnp.concatenate([(1 - t) * z + t * rows, t], 1)
        return jnp.mean((network.apply(params, inputs)[:, :d] - (rows - z)) ** 2)

    @jax.jit
    def train_leg(state, key):
        def step(state, key):
            params, memory, average = state
            pick, noise = jax.random.split(key)
            rows = inner[jax.random.randint(pick, (batch,), 0, len(inner))]
            updates, memory = optimizer.update(jax.grad(loss)(params, noise, rows), memory)
            params = optax.apply_updates(params, updates)
            average = optax.incremental_update(params, average, 1e-3)
            return (params, memory, average), None

        return jax.lax.scan(step, state, jax.random.split(key, leg))[0]

    held_key = jax.random.key(5)
    repeated = jnp.tile(held, (-(-4000 // len(held)), 1))
    validate = jax.jit(lambda params: loss(params, held_key, repeated))
    state, best, stale = (params, optimizer.init(params), params), (np.inf, params), 0
    for index in range(steps // leg):
        state = train_leg(state, jax.random.fold_in(jax.random.key(1), index))
        value = float(validate(state[2]))
        best, stale = ((value, state[2]), 0) if value < best[0] else (best, stale + 1)
        if stale >= 6:
            break
    params = best[1]
    solver, controller = diffrax.Dopri5(), diffrax.PIDController(rtol=1e-4, atol=1e-4)
    solve = dict(saveat=diffrax.SaveAt(t1=True), stepsize_controller=controller, max_steps=10_000)

    @jax.jit
    def push(z):
        term = diffrax.ODETerm(lambda t, y, _: velocity(params, y, t))
        return diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.05, z, **solve).ys[0]

    @jax.jit
    def density(y):
        def field(t, state, _):
            point = lambda row: velocity(params, row[None], t)[0]
            trace = jax.vmap(lambda row: jnp.trace(jax.jacfwd(point)(row)))(state[0])
            return velocity(params, state[0], t), trace

        start = y, jnp.zeros(len(y))
        term = diffrax.ODETerm(field)
        ends, change = diffrax.diffeqsolve(term, solver, 1.0, 0.0, -0.05, start, **solve).ys
        return jax.scipy.stats.norm.logpdf(ends[0]).sum(1) + change[0]

    def sample(key, n):
        z = jax.random.normal(key, (n, d))
        parts = [push(z[i : i + 10_000]) for i in range(0, n, 10_000)]
        return frame.inverse(np.asarray(jnp.concatenate(parts), np.float64))

    def log_prob(y):
        return (
            np.asarray(density(jnp.asarray(frame.forward(np.asarray(y, float)), jnp.float32)))
            + log_det
        )

    return Rival(sample, log_prob, f"{(index + 1) * leg} steps")
