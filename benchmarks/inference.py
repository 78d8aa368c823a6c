"""How near are posteriors from simulations alone to the exact ones, beside neural posterior estimation?

    pip download --no-deps sbibm
    python benchmarks/inference.py --wheel sbibm-*.whl --out benchmarks/results/inference.jsonl

Four tasks of Lueckmann et al. 2021 (arXiv 2101.04653), whose simulators are written here from the paper;
observations and 10,000 exact posterior draws of each are read from the wheel of ``sbibm``. The law, and the
network trained on it, learn parameters given data from 1,000 to 100,000 simulations, with the parameters'
bounds; ``c2st`` is the accuracy of the paper's classifier, 0.5 is perfect. ``--sbi`` trains ``sbi``'s NPE
(a masked autoregressive flow, its defaults) on the same simulations. ``PUBLISHED`` are the paper's means of
NPE over the ten observations.
"""

from __future__ import annotations

import bz2
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from clock import NAMES, Results, parser
from joblib import Parallel, delayed
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mcscore as mcs

Rows = np.ndarray
PUBLISHED = {
    "two_moons": (0.725, 0.606, 0.542),
    "gaussian_linear": (0.694, 0.552, 0.506),
    "gaussian_linear_uniform": (0.696, 0.553, 0.509),
    "slcp": (0.975, 0.901, 0.831),
}
SIMULATIONS = (1_000, 10_000, 100_000)


class Task(NamedTuple):
    """Parameters' prior and the simulator of data given parameters."""

    prior: Callable[[np.random.Generator, int], Rows]
    simulate: Callable[[np.random.Generator, Rows], Rows]
    bound: float | None  # of every parameter, on both sides


def two_moons(r: np.random.Generator, theta: Rows) -> Rows:
    """Return points of a half ring, moved by rotated parameters of which one has lost its sign."""
    angle, radius = r.uniform(-np.pi / 2, np.pi / 2, len(theta)), r.normal(0.1, 0.01, len(theta))
    ring = np.stack([np.cos(angle) * radius + 0.25, np.sin(angle) * radius], 1)
    moved = np.stack([-np.abs(theta.sum(1)), theta[:, 1] - theta[:, 0]], 1) / np.sqrt(2)
    return ring + moved


def linear(r: np.random.Generator, theta: Rows) -> Rows:
    """Return parameters under noise of variance 0.1."""
    return theta + np.sqrt(0.1) * r.standard_normal(theta.shape)


def slcp(r: np.random.Generator, theta: Rows) -> Rows:
    """Return four draws of a normal law in the plane, whose five parameters are the parameters."""
    first, second = theta[:, 2] ** 2, theta[:, 3] ** 2
    rho = np.tanh(theta[:, 4])
    e = r.standard_normal((4, 2, len(theta)))
    x = theta[:, 0] + first * e[:, 0]
    y = theta[:, 1] + second * (rho * e[:, 0] + np.sqrt(1 - rho**2) * e[:, 1])
    return np.stack([x, y], 1).reshape(8, -1).T


def uniform(bound: float, d: int) -> Callable[[np.random.Generator, int], Rows]:
    """Return the prior that is uniform in a cube."""
    return lambda r, n: r.uniform(-bound, bound, (n, d))


TASKS = {
    "two_moons": Task(uniform(1, 2), two_moons, 1),
    "gaussian_linear": Task(
        lambda r, n: np.sqrt(0.1) * r.standard_normal((n, 10)), linear, None
    ),
    "gaussian_linear_uniform": Task(uniform(1, 10), linear, 1),
    "slcp": Task(uniform(3, 5), slcp, 3),
}  # fmt: skip


def reference(wheel: Path, task: str, number: int) -> tuple[Rows, Rows]:
    """Return an observation (k,) and exact posterior draws (10000, d)."""
    folder = f"sbibm/tasks/{task}/files/num_observation_{number}"
    with zipfile.ZipFile(wheel) as file:
        observed = file.read(f"{folder}/observation.csv")
        draws = bz2.decompress(file.read(f"{folder}/reference_posterior_samples.csv.bz2"))
    read = lambda text: np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1)
    return read(observed), read(draws)


def c2st(exact: Rows, drawn: Rows) -> float:
    """Return the accuracy by which a classifier tells draws from exact ones, over five folds."""
    width = 10 * exact.shape[1]
    network = MLPClassifier((width, width), max_iter=10_000, random_state=1)
    x, label = np.concatenate([exact, drawn]), np.repeat([0, 1], [len(exact), len(drawn)])
    folds = KFold(5, shuffle=True, random_state=1)
    judge = make_pipeline(StandardScaler(), network)
    return float(np.mean(cross_val_score(judge, x, label, cv=folds)))


Sampler = Callable[[int, Rows], Rows]  # a number and an observation: posterior draws
Found = tuple[Sampler, dict[str, Any]]


def ends(theta: Rows, bound: float | None) -> dict[Any, tuple[float, float]] | None:
    """Return the bounds of every parameter."""
    return None if bound is None else dict.fromkeys(range(theta.shape[1]), (-bound, bound))


def by_law(theta: Rows, data: Rows, bound: float | None, quick: bool) -> Found:
    """Return draws of the conditional law."""
    law = mcs.mixture(theta, condition=data, kernel=mcs.Auto(), bounds=ends(theta, bound))
    draw = lambda n, y: np.asarray(law.sample(jax.random.key(1), n, condition=y))
    assert law.report is not None
    return draw, dict(kernel=law.report.kernel)


def by_network(theta: Rows, data: Rows, bound: float | None, quick: bool) -> Found:
    """Return draws of the conditional generator."""
    small: dict[str, Any] = dict(pairs=500, epochs=2) if quick else {}
    rows: dict[str, Any] = dict(condition=data, bounds=ends(theta, bound))
    generator = mcs.fit(jax.random.key(0), theta, **rows, encoder=False, refine=0, **small)
    return lambda n, y: np.asarray(generator.sample(jax.random.key(1), n, condition=y)), {}


def by_npe(theta: Rows, data: Rows, bound: float | None, quick: bool) -> Found:
    """Return draws of neural posterior estimation as ``sbi`` does it."""
    import torch
    from sbi.inference import NPE
    from sbi.utils import BoxUniform

    torch.manual_seed(0)
    d = theta.shape[1]
    wide = torch.full((d,), float(bound or 1))
    spread = torch.distributions.MultivariateNormal(torch.zeros(d), 0.1 * torch.eye(d))
    prior = spread if bound is None else BoxUniform(-wide, wide)
    method = NPE(prior, density_estimator="maf")
    pair = (torch.as_tensor(a, dtype=torch.float32) for a in (theta, data))
    method.append_simulations(*pair).train(max_num_epochs=2 if quick else 2**31 - 1)
    posterior = method.build_posterior()

    def draw(n: int, y: Rows) -> Rows:
        at = torch.as_tensor(y, dtype=torch.float32)
        return posterior.sample((n,), x=at, show_progress_bars=False).numpy()

    return draw, {}


def main() -> None:
    """Run every task."""
    options = parser(
        __doc__ or "",
        wheel=dict(type=Path, help="wheel of sbibm"),
        only=NAMES,
        simulations=dict(nargs="+", type=int, default=SIMULATIONS),
        observations=dict(type=int, default=10, help="how many of the ten"),
        sbi=dict(action="store_true", help="NPE of sbi beside"),
    ).parse_args()
    names = options.only or list(TASKS)
    results = Results(options.out, (__doc__ or "").splitlines()[0], data=options.only)
    rivals = {"mcscore, law": by_law, "mcscore, network": by_network}
    rivals |= {"sbi, NPE": by_npe} if options.sbi else {}
    many, draws = ([200], 300) if options.quick else (options.simulations, 10_000)
    for name in names[:1] if options.quick else names:
        task = TASKS[name]
        for n in many:
            r = np.random.default_rng(0)
            theta = task.prior(r, n)
            data = task.simulate(r, theta)
            known = PUBLISHED[name][SIMULATIONS.index(n)] if n in SIMULATIONS else None
            numbers = range(1, 1 + (1 if options.quick else options.observations))
            if options.wheel is None:  # to see that it runs: the prior instead
                truth = [(data[0], task.prior(r, draws)) for _ in numbers]
            else:
                truth = [reference(options.wheel, name, number) for number in numbers]
            lines, judged = [], []
            for rival, learn in rivals.items():
                start = time.perf_counter()
                sample, about = learn(theta, data, task.bound, options.quick)
                lines.append(dict(rival=rival, seconds=time.perf_counter() - start, **about))
                judged += [delayed(c2st)(exact[:draws], sample(draws, y)) for y, exact in truth]
            scores = np.reshape(Parallel(n_jobs=2)(judged), (len(lines), len(truth)))
            for line, found in zip(lines, scores, strict=True):
                results.add(
                    data=name, variant=n, c2st=float(np.mean(found)), published=known,
                    error=float(np.std(found) / np.sqrt(max(len(found) - 1, 1))),
                    observations=len(found), **line,
                )  # fmt: skip


if __name__ == "__main__":
    main()
