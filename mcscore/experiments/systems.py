"""Stochastic systems of known truth (arXiv 2410.03108 and its follow-ups), learned from observed paths.

``run`` fits a one-step sampler to each system, draws its next states and its paths and compares them with
as many of the truth:

    mean          largest error of a coordinate's mean, in deviations: of all states after one step, of the
                  truth at the end of a path
    deviation     largest relative error of a coordinate's standard deviation
    distribution  largest distance of a coordinate's distribution functions (Kolmogorov and Smirnov)

after one step at sixteen states within the central 95 % of those of training, the worst of them, and at the
end of long paths.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore import plotting
from mcscore._arrays import host_generator
from mcscore._optional import check_experiments
from mcscore._printing import text_table
from mcscore.experiments.comparison import cell
from mcscore.frames import Affine
from mcscore.inference.dynamics import Dynamics, fit_dynamics
from mcscore.mixtures import Local
from mcscore.storage import fingerprint, kept, replacing, write_text

DT = 0.01  # of every system
PATHS = 15_000  # observed until time 1, as in the paper
MANY = 100_000  # paths of a comparison: its own error is about 0.4 %
FEW = 10_000  # paths whose seconds are told
STATES = 16
QUICK: dict[str, Any] = dict(
    kernel=Local(0.3, clusters=6, partitions=1), frame=Affine(whiten=True), pairs=2_000, epochs=5
)
METRICS = ("mean", "deviation", "distribution")

Move = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class System(NamedTuple):
    """A system to learn.

    Args:
        move: Next states (m, d) of states (m, d), parameters (m, p) and a source of chance: the truth.
        start: Range of the states that paths start from, uniformly.
        origin: The state where long paths start.
        parameters: Range of the parameter, if it has any.
        dimension: Number of coordinates.
        times: Steps that are observed of each path.
        steps: Steps of the long paths.
    """

    move: Move
    start: tuple[float, float]
    origin: float
    parameters: tuple[float, float] | None = None
    dimension: int = 1
    times: int = 100
    steps: int = 100


def _euler(drift: Callable[..., np.ndarray], sigma: float, parts: int = 10) -> Move:
    """Return a step by Euler and Maruyama, in parts."""

    def move(x: np.ndarray, c: np.ndarray, r: np.random.Generator) -> np.ndarray:
        for _ in range(parts):
            noise = r.standard_normal(x.shape) * np.sqrt(DT / parts)
            x = x + drift(x, c) * DT / parts + sigma * noise
        return x

    return move


def _linear(matrix: Any, sigma: float) -> Move:
    turned = np.asarray(matrix, float).T
    return _euler(lambda x, c: x @ turned, sigma)


def _growth(x: np.ndarray, c: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """Geometric Brownian motion of drift 2 and volatility 1, exactly."""
    return x * np.exp((2 - 0.5) * DT + np.sqrt(DT) * r.standard_normal(x.shape))


def _root(y: np.ndarray, c: np.ndarray, r: np.random.Generator) -> np.ndarray:
    """Draw x given y = x^2 + 0.1 e, x uniform in (-1, 1) and e normal: two humps, by rejection."""
    x = np.full_like(y, np.nan)
    while (left := np.isnan(x)).any():
        tried = r.uniform(-1, 1, left.sum())
        nearest = np.clip(y[left], 0, 1)  # of x^2, where the density is largest
        misfit = (y[left] - tried**2) ** 2 - (y[left] - nearest) ** 2
        x[left] = np.where(r.random(left.sum()) < np.exp(-misfit / 0.02), tried, np.nan)
    return x


RING = np.eye(5, k=1) - np.eye(5, k=-1)
SYSTEMS = {
    "Ornstein-Uhlenbeck 1-D": System(_euler(lambda x, c: 1.2 - x, 0.3), (0, 2.5), 0.3),
    "Ornstein-Uhlenbeck 2-D": System(
        _linear([[-1, -0.5], [-1, -1]], 0.5), (-1, 1), 0.5, dimension=2
    ),
    "Ornstein-Uhlenbeck 5-D": System(
        _linear(0.3 * RING - np.eye(5), 0.5), (-1, 1), 0.5, dimension=5
    ),
    "geometric Brownian motion": System(_growth, (0.5, 3), 1.0),
    "double well": System(_euler(lambda x, c: x - x**3, 0.5), (-2, 2), 1.5),
    "drift with a parameter": System(
        _euler(lambda x, c: c, 1.0, 1), (-3, 3), 0.0, parameters=(-1, 1)
    ),
    "root of a noisy square": System(_root, (-0.1, 1.1), 0.5, times=1, steps=1),
}


def observe(
    system: System, paths: int, r: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return paths (m, times + 1, d) of the truth, and their parameters (m, 1) if there are any."""
    x = r.uniform(*system.start, (paths, system.dimension))
    c = (
        np.zeros((paths, 0))
        if system.parameters is None
        else r.uniform(*system.parameters, (paths, 1))
    )
    states = [x]
    for _ in range(system.times):
        states.append(system.move(states[-1], c, r))
    return np.stack(states, 1), c if c.size else None


def run(
    key: Array, out: Path, *, quick: bool = False, only: str | None = None, **options: Any
) -> dict[str, dict[str, Any]]:
    """Learn every system, write ``results.json`` and a picture of each, and return the figures.

    Args:
        key: Random key.
        out: Folder to write to, and to resume from: what is finished is not computed again.
        quick: Few paths, to see that it works.
        only: The name of one system.
        **options: Options of ``fit_dynamics``.

    Raises:
        ValueError: If ``only`` is the name of none.
    """
    check_experiments("reproduce")
    if only is not None and only not in SYSTEMS:
        raise ValueError(f"only: expected one of {', '.join(SYSTEMS)}, got {only!r}")
    out = Path(out)
    paths, many = (100, 2_000) if quick else (PATHS, MANY)
    options = (QUICK if quick else {}) | options
    results = {}
    for number, (name, system) in enumerate(SYSTEMS.items()):
        if only not in (None, name):
            continue
        settings = fingerprint(key, name, paths, many, options)[:12]
        folder = out / f"{name.replace(' ', '_')}-{settings}"
        folder.mkdir(parents=True, exist_ok=True)
        found = kept(folder / "results.json")
        if found is None or "rollout" not in found:
            own = jax.random.fold_in(key, number)
            found = _learned(own, name, system, paths, many, folder, options)
            write_text(folder / "results.json", json.dumps(found, indent=1))
        results[name] = found
        write_text(out / "results.json", json.dumps(results, indent=1))
    return results


def _learned(
    key: Array, name: str, system: System, paths: int, many: int, folder: Path, options: Any
) -> dict[str, Any]:
    fit_key, one_key, long_key, truth_key = jax.random.split(key, 4)
    r = host_generator(truth_key)
    x, c = observe(system, paths, r)
    start = time.perf_counter()
    learned = fit_dynamics(fit_key, x, c, **options)
    found: dict[str, Any] = dict(transitions=len(x) * system.times, fit=time.perf_counter() - start)
    now = x[:, :-1].reshape(-1, x.shape[2])
    low, high = np.quantile(now, [0.025, 0.975], axis=0)
    inside = now[((now >= low) & (now <= high)).all(1)]
    one = [
        _errors(
            *_after(system, learned, jax.random.fold_in(one_key, k), state, many, r, 1), now.std(0)
        )
        for k, state in enumerate(inside[r.choice(len(inside), STATES)])
    ]
    found["one step"] = {m: max(errors[m] for errors in one) for m in METRICS}
    origin = np.full(system.dimension, system.origin)
    drawn, true = _after(system, learned, long_key, origin, many, r, system.steps)
    found["steps"], found["last step"] = system.steps, _errors(drawn, true)
    few = partial(_rollout, system, learned, state=origin, many=min(many, FEW), steps=system.steps)
    few(jax.random.fold_in(long_key, 0))
    start = time.perf_counter()
    shown = few(jax.random.fold_in(long_key, 1))
    found["rollout"] = time.perf_counter() - start
    figure = plotting.plot_paths(
        {"truth": _true(system, origin, min(many, FEW), r, system.steps)[..., 0], "mcscore": shown[..., 0]},
        step=DT, title=name,
    )  # fmt: skip
    with replacing(folder / "paths.png") as path:
        figure.savefig(path)
    return found


def _parameters(system: System, many: int) -> np.ndarray:
    """Return the parameters that comparisons use, (many, p): three quarters of the range."""
    if system.parameters is None:
        return np.zeros((many, 0))
    low, high = system.parameters
    return np.full((many, 1), low + 0.75 * (high - low))


def _true(
    system: System, state: np.ndarray, many: int, r: np.random.Generator, steps: int
) -> np.ndarray:
    c, states = _parameters(system, many), [np.tile(state, (many, 1))]
    for _ in range(steps):
        states.append(system.move(states[-1], c, r))
    return np.stack(states)


def _rollout(
    system: System, learned: Dynamics, key: Array, *, state: np.ndarray, many: int, steps: int
) -> np.ndarray:
    c = None if system.parameters is None else _parameters(system, 1)
    return np.asarray(learned.rollout(key, np.tile(state, (many, 1)), steps, c), np.float64)


def _after(
    system: System, learned: Dynamics, key: Array, state: Any, many: int, r: Any, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the learned and the true states some steps after one of them."""
    drawn = _rollout(system, learned, key, state=state, many=many, steps=steps)[-1]
    return drawn, _true(system, state, many, r, steps)[-1]


def _errors(drawn: np.ndarray, true: np.ndarray, scale: Any = None) -> dict[str, float]:
    spread = true.std(0)
    mean = np.abs(drawn.mean(0) - true.mean(0)) / (spread if scale is None else scale)
    grid = np.sort(true, axis=0)
    steps = np.arange(1, len(grid) + 1) / len(grid)
    distance = [
        np.abs(np.searchsorted(np.sort(x), at, side="right") / len(x) - steps).max()
        for x, at in zip(drawn.T, grid.T, strict=True)
    ]
    values = (mean, np.abs(drawn.std(0) / spread - 1), distance)
    return {name: float(np.max(value)) for name, value in zip(METRICS, values, strict=True)}


def as_text(results: dict[str, dict[str, Any]]) -> str:
    """Return the figures as aligned text: errors in percent, and what they are errors of."""
    header = [
        "errors in percent",
        *(f"{m}, 1 step" for m in METRICS),
        *(f"{m}, end" for m in METRICS),
    ]
    rows = [
        [name]
        + [f"{100 * found[at][m]:.1f}" for at in ("one step", "last step") for m in METRICS]
        + [str(found["steps"]), cell(found["fit"]), cell(found["rollout"])]
        for name, found in results.items()
    ]
    return f"""{text_table([*header, "steps", "seconds to fit", "seconds of 10,000 paths"], rows)}

mean          in deviations: of all states after one step, of the truth at the end of a path
deviation     relative to the truth
distribution  largest distance between the distribution functions
One step: the worst of {STATES} states. With --quick little is learned: it shows that all runs."""
