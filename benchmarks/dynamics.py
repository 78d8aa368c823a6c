"""Does a one-step sampler learn stochastic systems of known truth, and how fast are its labels?

    python benchmarks/dynamics.py --out benchmarks/results/dynamics.jsonl

Systems: those of ``mcscore reproduce sde``; ``mcscore/experiments/systems.py`` says what its figures are.

Labels: of the one-dimensional Ornstein-Uhlenbeck process, 150,000 transitions. The follow-ups' scheme
(arXiv 2410.03108, Section 3): for every label the 2,000 nearest states, weights Gaussian in their distance
with a bandwidth set by hand, 10,000 Euler steps of the reverse ODE. A few of its labels are timed and
``seconds`` extrapolated to as many as ours. A label's truth is known (a linear map of its noise); errors are
root mean squares, in deviations of the step, over states within the central 95 %.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clock import NAMES, Results, parser

import mcscore as mcs
from mcscore.experiments import systems
from mcscore.inference.dynamics import LABELS, MOST_ROWS

COUNT, SOME = 50_000, 256  # ours, and how many of the rival's are timed
NEIGHBORS, EULER = 2_000, 10_000
BANDWIDTHS = (0.003, 0.01, 0.03)  # along the state; its range is 2.5
PULL, CENTER, SIGMA = 1.0, 1.2, 0.3  # of the process


@partial(jax.jit, static_argnames="steps")
def follow_up(
    z: jax.Array, state: jax.Array, near: jax.Array, moved: jax.Array, bandwidth: Any, steps: int
) -> jax.Array:
    """Return labels (b,) of noise (b,) at states (b,), from neighbors (b, m) and where they moved."""
    closeness = -((near - state[:, None]) ** 2) / (2 * bandwidth**2)
    dt = 1 / steps

    def step(x, k):
        t = 1 - k * dt
        alpha, variance = 1 - t * (1 - dt), t
        logits = closeness - (x[:, None] - alpha * moved) ** 2 / (2 * variance)
        mean = (jax.nn.softmax(logits, 1) * moved).sum(1)
        score = (alpha * mean - x) / variance
        drift = -(1 - dt) / alpha
        squared = 1 - 2 * drift * variance  # g^2 = d sigma^2 / dt - 2 drift sigma^2
        return x - dt * (drift * x - squared * score / 2), None

    return jax.lax.scan(step, z, jnp.arange(steps))[0]


def compare_labels(results: Results, quick: bool) -> None:
    """Time labels of both schemes on the same transitions, and measure their errors."""
    system = systems.SYSTEMS["Ornstein-Uhlenbeck 1-D"]
    r = np.random.default_rng(0)
    x, _ = systems.observe(system, 200 if quick else systems.PATHS, r)
    state, moved = x[:, :-1].reshape(-1, 1), np.diff(x, axis=1).reshape(-1, 1)
    count, some, steps = (500, 4, 50) if quick else (COUNT, SOME, EULER)
    decay = np.exp(-PULL * systems.DT)
    spread = SIGMA * np.sqrt((1 - decay**2) / (2 * PULL))
    low, high = np.quantile(state, [0.025, 0.975])

    def error(z, c, label):
        inside = (c > low) & (c < high)
        truth = (CENTER - c) * (1 - decay) + spread * z
        return float(np.sqrt(np.mean(((label - truth)[inside] / spread) ** 2)))

    start = time.perf_counter()
    frames = (mcs.frames.Affine(whiten=True),)
    law = mcs.mixture(
        moved, condition=state, kernel=mcs.Auto(frames=frames, most_rows=MOST_ROWS[0])
    )
    local = mcs.Local(0.3, clusters=6, partitions=1, most_rows=MOST_ROWS[0])  # as of a bent drift
    bent = mcs.mixture(moved, condition=state, kernel=local, frame=frames[0])
    seconds_of_laws = time.perf_counter() - start
    z, c = np.zeros((0, 1)), np.zeros((0, 1))
    for name, known in (("mcscore, its choice", law), ("mcscore, all rows", bent)):
        for _ in range(2):  # the first compiles
            start = time.perf_counter()
            pairs = mcs.generate_pairs(jax.random.key(0), known, mcs.Cosine(), count, **LABELS)
            jax.block_until_ready(pairs.x)
            seconds = time.perf_counter() - start
        assert pairs.condition_frame is not None
        z, c = np.asarray(pairs.z, np.float64), np.asarray(pairs.condition_frame.inverse(pairs.c))
        label = np.asarray(pairs.frame.inverse(pairs.x))
        results.add(
            data="labels", rival=name, labels=count, seconds=seconds,
            error=error(z[:, 0], c[:, 0], label[:, 0]), seconds_of_laws=seconds_of_laws,
            kernel="Local(0.3, clusters=6)" if known is bent else law.report and law.report.kernel,
        )  # fmt: skip

    order = np.argsort(state[:, 0])
    by_state, by_move = state[order, 0], moved[order, 0]
    c, z = c[:some, 0], z[:some, 0]
    scale = by_move.std()  # the scheme diffuses displacements in their own units
    near = np.stack([_nearest(by_state, value, min(NEIGHBORS, len(order) // 2)) for value in c])
    arrays = [jnp.asarray(a, jnp.float32) for a in (z, c, by_state[near], by_move[near] / scale)]
    for bandwidth in BANDWIDTHS:
        run = lambda h=bandwidth: jax.block_until_ready(follow_up(*arrays, h, steps))
        run()
        start = time.perf_counter()
        label = np.asarray(run(), np.float64) * scale
        seconds = time.perf_counter() - start
        results.add(
            data="labels", rival=f"{NEIGHBORS} neighbors, {EULER} Euler steps", variant=bandwidth,
            labels=some, timed=seconds, seconds=seconds * count / some, error=error(z, c, label),
        )  # fmt: skip


def _nearest(ordered: np.ndarray, value: float, count: int) -> np.ndarray:
    """Return the places of the ``count`` numbers nearest to a value, in an array that is in order."""
    at = int(np.searchsorted(ordered, value))
    first = max(at - count, 0)
    window = np.abs(ordered[first : at + count] - value)
    return first + np.argpartition(window, count - 1)[:count]


def main() -> None:
    """Run the labels, then every system."""
    options = parser(__doc__, only=NAMES).parse_args()
    results = Results(options.out, __doc__.splitlines()[0], data=options.only)
    if not options.only or "labels" in options.only:
        compare_labels(results, options.quick)
    names = ["double well"] if options.quick else list(systems.SYSTEMS)
    for name in names:
        if options.only and name not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = systems.run(jax.random.key(0), Path(folder), quick=options.quick, only=name)
        found = run[name]
        for part in ("one step", "last step"):
            found |= {f"{metric}, {part}": value for metric, value in found.pop(part).items()}
        results.add(data=name, **found)


if __name__ == "__main__":
    main()
