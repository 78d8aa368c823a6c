"""The demonstration: the whole method on two planes and two tables, with a table and pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mcscore import datasets, plotting
from mcscore._optional import check_experiments
from mcscore._printing import text_table
from mcscore.experiments.evaluation import judge
from mcscore.flows import score, trajectory
from mcscore.frames import Gaussianize
from mcscore.generators import MLP
from mcscore.mixtures import Local
from mcscore.pipeline import Fit, fit_stages
from mcscore.storage import replacing, write_text

QUICK: dict[str, Any] = dict(
    kernel=Local(0.7, 4), frame=Gaussianize(), pairs=1_000, epochs=2, network=MLP(width=16, depth=2)
)


def run(out: Path, *, quick: bool = False, progress: bool = False) -> str:
    """Write every picture and ``metrics.json`` to ``out``, and return the table as text."""
    check_experiments("demo")
    out.mkdir(parents=True, exist_ok=True)
    start, report, histories = time.perf_counter(), {}, {}
    rows = 500 if quick else 5000
    settings: dict[str, Any] = dict(pairs=20_000, encoder=False)
    if quick:
        settings = QUICK | dict(encoder=False)
    names = ("checkerboard", "two_spirals", "breast_cancer", "wine")
    for index, name in enumerate(names[1::2] if quick else names):
        data_key, fit_key, sample_key, judging_key = jax.random.split(jax.random.key(index), 4)
        if name in datasets.TABLES:
            table = datasets.TABLES[name]()
            train, test, floor = datasets.split(data_key, table, 0.5, 0.25, 0.25)
        else:
            points = np.asarray(datasets.TWO_DIMENSIONAL[name](data_key, 3 * rows))
            train, test, floor = np.split(points, 3)
        made = fit_stages(fit_key, train, progress=progress, **settings)
        clock = time.perf_counter()
        samples = np.asarray(made.generator.sample(sample_key, max(len(test), 10_000)))
        made.seconds["sampling"] = time.perf_counter() - clock
        labels = np.asarray(made.pairs.labels())
        sets = {"labels": labels, "generated": samples, "held out": floor}
        report[name] = dict(
            seconds=made.seconds, label_error=made.pairs.report and made.pairs.report._asdict()
        )
        for kind, set_key in zip(sets, jax.random.split(judging_key, 3), strict=True):
            report[name][kind] = judge(set_key, sets[kind], train, test, sets=1, mmd_rows=1000)
        histories[name.replace("_", " ")] = made.history
        _draw(out, name, made, samples, train, test)
    _save(plotting.plot_history(histories), out / "training.png")
    write_text(out / "metrics.json", json.dumps(report, indent=1))
    seconds = time.perf_counter() - start
    return f"{_table(report)}\n\n{seconds:.0f} s in all; pictures and metrics.json in {out}/"


METRICS = {
    "sliced W2": "sliced_wasserstein",
    "MMD^2": "mmd",
    "(threshold)": "mmd_threshold",
    "classifier": "classifier",
    "KL/column": "column_kl",
    "near train": "memorization",
}


def _draw(
    out: Path, name: str, made: Fit, samples: np.ndarray, train: np.ndarray, test: np.ndarray
) -> None:
    labels = made.pairs.labels()
    title = name.replace("_", " ")
    sets = {
        "data": train,
        "labels": labels[: len(train)],
        "generated, one step": samples[: len(train)],
    }
    if train.shape[1] > 2:
        held = {"held out": test, "generated": samples[: 4 * len(test)]}
        _save(plotting.plot_pairs(held, title=title), out / f"{name}.png")
        return
    _save(plotting.plot_samples(sets, title=title), out / f"{name}.png")
    law, schedule = made.mixture, made.schedule
    z = jax.random.normal(jax.random.key(7), (3000, 2))
    paths = plotting.plot_trajectories(
        trajectory(z, law, schedule, points=80), title=f"{title}: noise to data"
    )
    _save(paths, out / f"{name}_trajectories.png")
    frame_data = law.frame.forward(train)
    field = plotting.plot_score(
        lambda x: score(x, 0.1, law, schedule), frame_data, title=f"{title}: score at t = 0.1"
    )
    _save(field, out / f"{name}_score.png")


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as aside:
        figure.savefig(aside)


def _table(report: dict[str, dict]) -> str:
    """Return the report as one aligned table."""
    lines = []
    for name, entry in report.items():
        seconds = entry["seconds"]
        spent = {
            "labels": f"{seconds['mixture'] + seconds['labels']:.1f}",
            "generated": f"{seconds['training']:.1f} + {seconds['sampling']:.2f}",
            "held out": "",
        }
        for kind, text in spent.items():
            numbers = [f"{entry[kind][metric]:.4f}" for metric in METRICS.values()]
            lines.append([name if kind == "labels" else "", kind, text, *numbers])
    return text_table(["data", "rows", "seconds", *METRICS], lines, left=2)
