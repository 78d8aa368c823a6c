"""How exact are labels for a given number of velocity evaluations?

    python benchmarks/labels.py --out benchmarks/results/labels.jsonl [--data power_partial.npz]

Work-precision: distance per coordinate, in standard deviations (RMS and median), between end points and a
tight solve of the same ODE (Dopri5, 1,201 evaluations), against evaluations and seconds, for 1,000
trajectories. Rivals: the paper's Euler in t, DDIM and DPM-Solver++(2M) as published, Runge-Kutta methods
of diffrax in the canonical clock. The law is the paper's, ``Linear(eps=0.01)`` and points (``Dirac``), on the
2-D set; ``Isotropic(0.3)`` for the mixture; ``Local`` kernels for the tables. Last, labels as users make
them against the paper's scripts: 5,000 pairs from 1,000 rows, d = 6, a few of their 500 steps timed and
multiplied. And what it would cost to skip the first part of the clock as if the law were Gaussian there.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from clock import Results, measure, parser

import mcscore as mcs
from mcscore import velocity

SCHEDULE = mcs.Linear(eps=0.01)


def problems(data: Path | None, quick: bool):
    n = 200 if quick else 5000
    points = np.asarray(mcs.datasets.checkerboard(jax.random.key(0), n))
    yield "checkerboard", mcs.mixture((points - points.mean(0)) / points.std(0))
    if quick:
        return
    rows = mcs.datasets.random_gaussian_mixture(jax.random.key(1), 6, 8).sample(
        jax.random.key(2), n
    )
    rows = np.asarray((rows - rows.mean(0)) / rows.std(0))
    yield "8 Gaussians, d = 6", mcs.mixture(rows, kernel=mcs.Isotropic(0.3))
    local = mcs.Local(0.7, clusters=4, partitions=2)
    yield (
        "breast cancer",
        mcs.mixture(mcs.datasets.breast_cancer(), kernel=local, frame=mcs.Gaussianize()),
    )
    if data:
        local = mcs.Local(0.7, clusters=40, partitions=2, most_rows=12_000)
        train = np.load(data)["train"]
        yield (
            data.stem.removesuffix("_partial"),
            mcs.mixture(train, kernel=local, frame=mcs.Gaussianize()),
        )


@partial(jax.jit, static_argnums=2)
def ddim(z, law, steps):
    """Song et al. 2021: alpha x0 + sigma eps, both from the denoiser at the step before; equal steps in t."""
    times = jnp.linspace(1, 0, steps + 1)
    x = SCHEDULE(1.0)[1] * z

    def step(x, pair):
        t, s = pair
        (alpha, sigma), (alpha_next, sigma_next) = SCHEDULE(t), SCHEDULE(s)
        clean = mcs.denoise(x, t, law, SCHEDULE)
        return alpha_next * clean + sigma_next * (x - alpha * clean) / sigma, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


@partial(jax.jit, static_argnums=2)
def dpm_solver(z, law, steps):
    """Lu et al. 2022, DPM-Solver++(2M), equal steps in log(alpha/sigma); the first is of first order."""
    start = 1e-3  # alpha = 0 at t = 1 has no log-SNR
    (a0, s0), (a1, s1) = SCHEDULE(1 - start), SCHEDULE(0.0)
    rise = jnp.linspace(jnp.log(a0 / s0), jnp.log(a1 / s1), steps + 1)
    times = jax.vmap(lambda r: SCHEDULE.time(jnp.exp(-r)))(rise)
    x = SCHEDULE(1.0)[1] * z

    def step(carry, index):
        x, before = carry
        t, s, h = times[index], times[index + 1], rise[index + 1] - rise[index]
        (_, sigma), (alpha_next, sigma_next) = SCHEDULE(t), SCHEDULE(s)
        clean = mcs.denoise(x, t, law, SCHEDULE)
        guess = jnp.where(index == 0, clean, 1.5 * clean - 0.5 * before)
        return (sigma_next / sigma * x - alpha_next * jnp.expm1(-h) * guess, clean), None

    return jax.lax.scan(step, (x, x), jnp.arange(steps))[0][0]


def runge_kutta(solver, clock):
    return lambda z, law, steps: mcs.transport(
        z, law, SCHEDULE, solver=solver, steps=steps, clock=clock
    )


@jax.jit
def gaussian_start(z, law, share):
    """Skip ``share`` of the clock as if the law were Gaussian (its flow is linear); then a tight solve.

    While ``x_t`` is Gaussian, ``x_t = alpha mu + (alpha^2 Cov + sigma^2)^(1/2) z`` in any clock.
    """
    inner, times = mcs.CanonicalClock()(law, SCHEDULE, z.dtype)
    points, log_weights = law.points()
    weights = jnp.exp(log_weights)
    mean = weights @ points
    centered = points - mean
    variances = law.blocks.variances
    bases = law.blocks.bases
    if bases is None:
        bases = jnp.broadcast_to(jnp.eye(law.dimension), (len(variances), *[law.dimension] * 2))
    kernel = jnp.einsum("kij,kj,klj->kil", bases, variances, bases)
    kernel = jnp.einsum("k,kij->ij", jnp.exp(law.blocks.log_weights).sum(1), kernel)
    values, vectors = jnp.linalg.eigh((weights[:, None] * centered).T @ centered + kernel)

    start = times[0] + share * (times[1] - times[0])
    alpha, variance = inner.rates(start[None])[:2]
    root = (vectors * jnp.sqrt(alpha**2 * values + variance)) @ vectors.T
    alpha_end, variance_end = inner.rates(times[1:])[:2]
    scale = jnp.sqrt(alpha_end**2 * law.variance + variance_end)
    outer = SCHEDULE.rates(jnp.zeros(1))[:2]
    scale = scale / jnp.sqrt(outer[0] ** 2 * law.variance + outer[1])
    return (
        diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, law: velocity(y, t, law, inner)),
            diffrax.Dopri5(),
            t0=start,
            t1=times[1],
            dt0=None,
            y0=alpha * mean + z @ root,
            args=law,
            stepsize_controller=diffrax.StepTo(ts=jnp.linspace(start, times[1], 61)),
        ).ys[0]
        / scale
    )


RIVALS = {  # name: (function, steps tried, evaluations per step, and once)
    "Euler in t (the paper)": (
        runge_kutta(diffrax.Euler(), mcs.TimeClock()),
        (16, 30, 100, 500),
        1,
        0,
    ),
    "DDIM": (ddim, (16, 30, 100, 500), 1, 0),
    "DPM-Solver++(2M)": (dpm_solver, (16, 30, 60), 1, 0),
    "Heun in p": (runge_kutta(diffrax.Heun(), mcs.CanonicalClock()), (8, 15), 2, 0),
    "Bosh3 in p (default)": (
        runge_kutta(diffrax.Bosh3(), mcs.CanonicalClock()),
        (3, 5, 9, 16),
        3,
        1,
    ),
    "Adams-Bashforth in p": (
        runge_kutta(mcs.flows.AdamsBashforth(), mcs.CanonicalClock()),
        (8, 14, 26, 47),
        1,
        2,
    ),
    "Dopri5 in p": (runge_kutta(diffrax.Dopri5(), mcs.CanonicalClock()), (2, 4, 8), 6, 1),
}


def paper_seconds(rows, z, steps, timed):
    """Return seconds for all steps of the paper's script in PyTorch, from a few of them."""
    import torch

    x, y = torch.tensor(rows), torch.tensor(z)
    start = time.perf_counter()
    for k in range(timed):
        t = 1 - k / steps
        alpha, variance = 1 - 0.99 * t, 0.01 + 0.99 * t
        difference = y[:, None] - alpha * x[None]
        weights = torch.exp(-(difference**2).sum(-1) / (2 * variance))
        score = (weights[..., None] * -difference / variance).sum(1) / weights.sum(1, keepdim=True)
        y = y - (-0.99 / alpha * y - (0.99 + 2 * 0.99 / alpha * variance) / 2 * score) / steps
    return (time.perf_counter() - start) * steps / timed


def main() -> None:
    options = parser(
        __doc__, data=dict(type=Path, help="an .npz file with an array 'train'")
    ).parse_args()
    results = Results(options.out, __doc__.splitlines()[0])
    for problem, law in problems(options.data, options.quick):
        z = jax.random.normal(jax.random.key(3), (20 if options.quick else 1000, law.dimension))
        truth = mcs.transport(z, law, SCHEDULE, solver=diffrax.Dopri5(), steps=200)
        deviation = float(np.sqrt(law.variance))
        for share in (0.0, 0.05, 0.1, 0.2):
            end = np.asarray(gaussian_start(z, law, share))
            error = np.sqrt(np.mean((end - np.asarray(truth)) ** 2, 1)) / deviation
            results.add(
                kind="Gaussian start",
                problem=problem,
                share=share,
                rms=float(np.sqrt(np.mean(error**2))),
                median=float(np.median(error)),
            )
        for name, (solve, counts, each, once) in RIVALS.items():
            for steps in counts[:1] if options.quick else counts:
                start = time.perf_counter()
                end = jax.block_until_ready(solve(z, law, steps))
                first = time.perf_counter() - start
                start = time.perf_counter()
                jax.block_until_ready(solve(z, law, steps))
                seconds = time.perf_counter() - start
                error = np.sqrt(np.mean((np.asarray(end) - np.asarray(truth)) ** 2, 1)) / deviation
                results.add(
                    kind="precision",
                    problem=problem,
                    name=name,
                    evaluations=each * steps + once,
                    rms=float(np.sqrt(np.mean(error**2))),
                    median=float(np.median(error)),
                    switched=float(np.mean(error > 0.5)),
                    seconds=seconds,
                    first=first,
                )
    if jax.devices()[0].platform != "cpu":
        return  # the paper's scripts run on the CPU: compare there
    size, pairs = (200, 500) if options.quick else (1000, 5000)
    rows = np.random.default_rng(0).standard_normal((size, 6)).astype(np.float32)
    z = np.random.default_rng(1).standard_normal((pairs, 6)).astype(np.float32)
    law, zj = mcs.mixture(rows), jnp.asarray(z)
    ours = measure(lambda: mcs.transport(zj, law, SCHEDULE))
    results.add(
        kind="labels", name="mcscore", pairs=pairs, rows=size, seconds=ours["median"],
        spread=(ours["high"] - ours["low"]) / ours["median"], first=ours["first"],
    )  # fmt: skip
    try:
        seconds = paper_seconds(rows, z, 500, 2 if options.quick else 10)
    except ImportError:
        return
    results.add(
        kind="labels", name="the paper's steps, PyTorch", pairs=pairs, rows=size, seconds=seconds,
        times_ours=seconds / ours["median"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
