"""Does a one-step sampler learn stochastic systems of known truth, and at what cost?

    python benchmarks/dynamics.py --out benchmarks/results/dynamics.jsonl

The problems of arXiv 2410.03108 and its follow-ups. Of each: worst relative error of mean (in deviations of
the state) and of deviation, after one step over the central 95 % of the states of training and after a
hundred steps, against 200,000 paths of the truth (Euler-Maruyama or exact); seconds of
the fit and of 10,000 paths of 100 steps after compilation.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
from clock import NAMES, Results, parser

import mcscore as mcs

Step = Any  # of states (m, d), parameters (m, p) and a generator: the states a time dt later


def euler(drift: Any, sigma: Any, dt: float, parts: int = 10) -> Step:
    """Return a step by Euler and Maruyama in parts."""

    def step(x, c, r):
        for _ in range(parts):
            noise = r.standard_normal(x.shape) * np.sqrt(dt / parts)
            x = x + drift(x, c) * dt / parts + sigma(x) * noise
        return x

    return step


def problems() -> dict[str, dict[str, Any]]:
    """Return of each problem its step, where paths start, how many there are and of how many times."""
    turn = np.array([[-1, -0.5], [-1, -1]])
    chain = -np.eye(5) + 0.3 * np.diag(np.ones(4), 1) - 0.3 * np.diag(np.ones(4), -1)
    constant = lambda s: lambda x: s
    return {
        "Ornstein-Uhlenbeck, 1-D": dict(
            step=euler(lambda x, c: 1.2 - x, constant(0.3), 0.01),
            start=lambda r, m: r.uniform(0, 2.5, (m, 1)), times=10,
        ),
        "Ornstein-Uhlenbeck, 2-D": dict(
            step=euler(lambda x, c: x @ turn.T, constant(0.5), 0.01),
            start=lambda r, m: r.uniform(-1, 1, (m, 2)), times=10,
        ),
        "Ornstein-Uhlenbeck, 5-D": dict(
            step=euler(lambda x, c: x @ chain.T, constant(0.5), 0.01),
            start=lambda r, m: r.uniform(-1, 1, (m, 5)), times=10,
        ),
        "geometric Brownian motion": dict(
            step=lambda x, c, r: x * np.exp(0.015 + 0.1 * r.standard_normal(x.shape)),
            start=lambda r, m: r.uniform(0.5, 3, (m, 1)), times=5,
        ),
        "double well": dict(
            step=euler(lambda x, c: x - x**3, constant(0.5), 0.01),
            start=lambda r, m: r.uniform(-2, 2, (m, 1)), times=10,
        ),
        "drift with a parameter": dict(
            step=lambda x, c, r: x + 0.01 * c + 0.1 * r.standard_normal(x.shape),
            start=lambda r, m: r.uniform(-1, 1, (m, 1)), times=10, parameters=1,
        ),
    }  # fmt: skip


def moments_error(found: np.ndarray, truth: np.ndarray, scale: np.ndarray) -> tuple[float, float]:
    """Return the largest error of means, in units of ``scale``, and of deviations, relative."""
    mean = np.abs(found.mean(0) - truth.mean(0)) / scale
    return float(mean.max()), float(np.abs(found.std(0) / truth.std(0) - 1).max())


def judge(
    name: str, problem: dict[str, Any], paths: int, many: int, **small: Any
) -> dict[str, Any]:
    """Fit one problem and compare with the truth."""
    r = np.random.default_rng(11)
    count = problem.get("parameters", 0)
    c = r.uniform(-1, 1, (paths, count)) if count else None
    x = [problem["start"](r, paths)]
    for _ in range(problem["times"]):
        x.append(problem["step"](x[-1], c, r))
    x = np.stack(x, 1)
    start = time.perf_counter()
    law = mcs.inference.fit_dynamics(jax.random.key(0), x, c, **small)
    seconds = time.perf_counter() - start

    scale, one = x.reshape(-1, x.shape[2]).std(0), []
    given = np.array([0.5]) if count else None
    for k, at in enumerate(np.quantile(x[:, 0], [0.025, 0.25, 0.5, 0.75, 0.975], axis=0)):
        states = np.tile(at, (many, 1))
        truth = problem["step"](states, given, r)
        found = np.asarray(law.step(jax.random.key(k), states, given), np.float64)
        one.append(moments_error(found, truth, scale))
    states = np.tile(np.median(x[:, 0], 0) * 0.5 + 0.25, (10_000, 1))
    jax.block_until_ready(law.rollout(jax.random.key(1), states, 100, given))
    start = time.perf_counter()
    path = np.asarray(law.rollout(jax.random.key(2), states, 100, given), np.float64)
    rollout = time.perf_counter() - start
    truth = np.tile(states[:1], (many, 1))
    for _ in range(100):
        truth = problem["step"](truth, given, r)
    far = moments_error(path[-1], truth, np.maximum(truth.std(0), 1e-12))
    return dict(
        data=name, rows=len(x) * problem["times"], mean_1=max(m for m, _ in one),
        deviation_1=max(s for _, s in one), mean_100=far[0], deviation_100=far[1],
        seconds=round(seconds, 1), rollout=round(rollout, 3), kernel=law.generator.law.report.kernel,
    )  # fmt: skip


def main() -> None:
    """Run every problem."""
    options = parser(__doc__, only=NAMES).parse_args()
    results = Results(options.out, __doc__.splitlines()[0], data=options.only)
    for name, problem in problems().items():
        if options.only and name not in options.only:
            continue
        paths, many = (500, 2000) if options.quick else (15_000, 200_000)
        small = dict(pairs=500, epochs=2) if options.quick else {}
        results.add(**judge(name, problem, paths, many, **small))
        if options.quick:
            break


if __name__ == "__main__":
    main()
