"""The demonstration: the whole method on two planes and two tables, with a table and pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mcscore import datasets, metrics, plotting
from mcscore.extras import check_all
from mcscore.fields import score
from mcscore.files import write_text
from mcscore.flow import trajectory
from mcscore.frames import Gaussianize
from mcscore.kernels import Local
from mcscore.networks import MLP
from mcscore.pipeline import Fit, fit_stages

QUICK: dict[str, Any] = dict(
    kernel=Local(0.7, 4), frame=Gaussianize(), pairs=1_000, epochs=2, network=MLP(width=16, depth=2)
)


def run(out: Path, *, quick: bool = False, progress: bool = False) -> str:
    """Write every picture and ``metrics.json`` to ``out``, and return the table as text."""
    check_all("demo")
    out.mkdir(parents=True, exist_ok=True)
    start, report, histories = time.perf_counter(), {}, {}
    rows = 500 if quick else 5000
    settings: dict[str, Any] = dict(pairs=20_000, encoder=False)
    if quick:
        settings = QUICK | dict(encoder=False)
    names = ("checkerboard", "two_spirals", "breast_cancer", "wine")
    for index, name in enumerate(names[1::2] if quick else names):
        key = jax.random.key(index)
        if name in datasets.TABLES:
            train, test, floor = datasets.split(0, datasets.TABLES[name](), 0.5, 0.25, 0.25)
        else:
            points = np.asarray(
                datasets.TWO_DIMENSIONAL[name](jax.random.fold_in(key, 1), 3 * rows)
            )
            train, test, floor = np.split(points, 3)
        made = fit_stages(jax.random.fold_in(key, 2), train, progress=progress, **settings)
        clock = time.perf_counter()
        samples = np.asarray(
            made.generator.sample(jax.random.fold_in(key, 3), max(len(test), 10_000))
        )
        made.seconds["sampling"] = time.perf_counter() - clock
        report[name] = _judge(made, samples, train, test, floor)
        histories[name.replace("_", " ")] = made.history
        _draw(out, name, made, samples, train, test)
    plotting.plot_history(histories).savefig(out / "training.png")
    write_text(out / "metrics.json", json.dumps(report, indent=1))
    seconds = time.perf_counter() - start
    return f"{_table(report)}\n\n{seconds:.0f} s in all; pictures and metrics.json in {out}/"


METRICS = {
    "sliced W2": "sliced_wasserstein",
    "MMD^2": "mmd",
    "(threshold)": "mmd_threshold",
    "energy": "energy_distance",
    "KL/column": "column_kl",
    "near train": "memorisation",
}


def _judge(
    made: Fit, samples: np.ndarray, train: np.ndarray, test: np.ndarray, floor: np.ndarray
) -> dict:
    """Return every metric of labels, generated samples and a second held-out part, against ``test``."""
    shift, scale = train.mean(0), train.std(0)
    standard = lambda x: (np.asarray(x) - shift) / scale  # noqa: E731
    labels = made.pairs.labels()
    sets = {"labels": labels, "generated": samples, "held out": floor}
    report: dict[str, Any] = {"seconds": made.seconds, "label_error": made.pairs.report._asdict()}
    for name, rows in sets.items():
        x, y = standard(rows)[: len(test)], standard(test)
        value, threshold = metrics.mmd(jax.random.key(1), x, y)
        report[name] = dict(
            sliced_wasserstein=metrics.sliced_wasserstein(jax.random.key(0), x, y),
            mmd=value,
            mmd_threshold=threshold,
            energy_distance=metrics.energy_distance(x, y),
            column_kl=float(metrics.column_kl(y, x).mean()),
            memorisation=metrics.memorisation(x, standard(train), y).share
            if name != "held out"
            else None,
        )
    return report


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
        plotting.plot_pairs(held, title=title).savefig(out / f"{name}.png")
        return
    plotting.plot_samples(sets, title=title).savefig(out / f"{name}.png")
    law, schedule = made.mixture, made.schedule
    z = jax.random.normal(jax.random.key(7), (300, 2))
    paths = plotting.plot_trajectories(
        trajectory(z, law, schedule, points=80), title=f"{title}: noise to data"
    )
    paths.savefig(out / f"{name}_trajectories.png")
    frame_data = law.frame.forward(train)
    field = plotting.plot_score(
        lambda x: score(x, 0.1, law, schedule), frame_data, title=f"{title}: score at t = 0.1"
    )
    field.savefig(out / f"{name}_score.png")


def _table(report: dict[str, dict]) -> str:
    """Return the report as one aligned table."""
    header = ["data", "rows", "seconds", *METRICS]
    lines = []
    for name, entry in report.items():
        seconds = entry["seconds"]
        spent = {
            "labels": f"{seconds['mixture'] + seconds['labels']:.1f}",
            "generated": f"{seconds['training']:.1f} + {seconds['sampling']:.2f}",
            "held out": "",
        }
        for kind, time_text in spent.items():
            cells = [entry[kind][metric] for metric in METRICS.values()]
            numbers = ["" if cell is None else f"{cell:.4f}" for cell in cells]
            lines.append([name if kind == "labels" else "", kind, time_text, *numbers])
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    justify = [str.ljust, str.ljust, *[str.rjust] * (len(header) - 2)]
    rows = [
        "  ".join(j(cell, w) for j, cell, w in zip(justify, line, widths, strict=True))
        for line in [header, *lines]
    ]
    rows.insert(1, "-" * len(rows[0]))
    return "\n".join(rows)
