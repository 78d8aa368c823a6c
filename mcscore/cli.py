"""The command line: ``mcscore demo | fit | sample | density | plot | reproduce | export``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mcscore import comparison, datasets, metrics, plotting, reproduce
from mcscore.fields import score
from mcscore.files import moved_into_place, write_text
from mcscore.flow import trajectory
from mcscore.frames import Gaussianize
from mcscore.generator import load
from mcscore.kernels import Local
from mcscore.networks import MLP
from mcscore.pipeline import Fit, fit_stages
from mcscore.tables import as_table

QUICK: dict[str, Any] = dict(
    kernel=Local(0.7, 4), frame=Gaussianize(), pairs=1_000, epochs=2, network=MLP(width=16, depth=2)
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 after a message on bad input."""
    parser = argparse.ArgumentParser(
        prog="mcscore",
        description="Training-free score estimation and supervised one-step generative models.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="run the whole method on built-in data, with a table and pictures"
    )
    demo.add_argument(
        "--out", default="out", type=Path, help="folder for figures and metrics.json (default: out)"
    )
    demo.add_argument("--quick", action="store_true", help="small and rough, to see that it works")
    demo.set_defaults(run=_demo)

    table = argparse.ArgumentParser(add_help=False)
    table.add_argument(
        "--array", help="name of the array in an .npz file (default: its only one, or 'train')"
    )
    rows = "rows as .csv (with or without a header), .npy or .npz"

    fit = commands.add_parser("fit", parents=[table], help="learn a generator from a table")
    fit.add_argument("data", type=Path, help=rows)
    fit.add_argument("--out", required=True, type=Path, help="model file to write (.safetensors)")
    fit.add_argument("--pairs", default=50_000, type=int, help="labelled pairs (default: 50000)")
    fit.add_argument(
        "--epochs", type=int, help="passes over them, at most (default: 3000 steps of 512)"
    )
    fit.add_argument(
        "--refine", type=int, help="steps that bring the density closer (default: 1500, if d <= 12)"
    )
    fit.add_argument("--seed", default=0, type=int, help="random seed (default: 0)")
    fit.set_defaults(run=_fit)

    sample = commands.add_parser("sample", help="draw rows from a saved generator")
    sample.add_argument("model", type=Path, help="file written by mcscore fit")
    sample.add_argument("-n", default=10_000, type=int, help="number of rows (default: 10000)")
    sample.add_argument("--out", required=True, type=Path, help=".csv or .npy file to write")
    sample.add_argument("--seed", default=0, type=int, help="random seed (default: 0)")
    sample.set_defaults(run=_sample)

    density = commands.add_parser(
        "density", parents=[table], help="log densities of rows under a saved generator"
    )
    density.add_argument("model", type=Path, help="file written by mcscore fit")
    density.add_argument("data", type=Path, help=rows)
    density.add_argument(
        "--out", required=True, type=Path, help=".csv or .npy file to write: log_prob, certified"
    )
    density.set_defaults(run=_density)

    plot = commands.add_parser("plot", parents=[table], help="a picture of one to three tables")
    plot.add_argument("data", type=Path, nargs="+", help=rows)
    plot.add_argument("--out", required=True, type=Path, help="picture to write (.png, .pdf, .svg)")
    plot.add_argument("--columns", default=5, type=int, help="of the first columns (default: 5)")
    plot.set_defaults(run=_plot)

    again = commands.add_parser(
        "reproduce", help="the paper's experiment, as published and with this library's defaults"
    )
    again.add_argument(
        "what",
        metavar="DATA",
        help="2d, power, gas, hepmass, miniboone, or a .npz (arrays train, test), .npy or .csv file",
    )
    again.add_argument(
        "--data", type=Path, help="folder with the official files of power, gas, hepmass, miniboone"
    )
    again.add_argument(
        "--out", default="out", type=Path, help="folder to write to and resume from (default: out)"
    )
    again.add_argument("--seed", default=0, type=int, help="random seed (default: 0)")
    again.add_argument("--quick", action="store_true", help="small and rough, to see that it works")
    again.add_argument(
        "--published-pairs", type=int, help="fewer pairs than the paper's 200000, full batch"
    )
    again.add_argument("--published-steps", type=int, help="fewer steps than the paper's 20000")
    again.set_defaults(run=_reproduce)

    export = commands.add_parser(
        "export", help="write a saved generator's sampler as a StableHLO program"
    )
    export.add_argument("model", type=Path, help="file written by mcscore fit")
    export.add_argument("--out", required=True, type=Path, help="file to write (.stablehlo)")
    export.set_defaults(run=_export)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"mcscore {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _version() -> str:
    from importlib.metadata import version

    return f"mcscore {version('mcscore')}"


# --- tables in and out ---------------------------------------------------------------------------


TABLES = (".csv", ".npy")


def _check_out(path: Path, *suffixes: str) -> None:
    """Raise before any work if ``path`` cannot be written, or has none of the ``suffixes``."""
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"--out: expected a {' or '.join(suffixes)} file, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(f"--out: cannot write {path}")


def _write(path: Path, rows: np.ndarray, names: list[str] | None) -> None:
    """Write a table aside and move it into place."""
    with moved_into_place(path) as aside, aside.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, rows)
        else:
            header = ",".join(names or [])
            digits = np.finfo(rows.dtype).precision + 1  # 0.22 stays 0.22
            style: Any = dict(delimiter=",", fmt=f"%.{digits}g", comments="", encoding="utf-8")
            np.savetxt(file, rows, header=header, **style)


# --- commands ------------------------------------------------------------------------------------


def _fit(options: argparse.Namespace) -> None:
    _check_out(options.out)
    table, names = datasets.read(options.data, options.array)
    made = fit_stages(
        jax.random.key(options.seed),
        table,
        pairs=options.pairs,
        epochs=options.epochs,
        refine=options.refine,
        progress=True,
    )
    settings = json.dumps(json.loads(made.generator.settings) | {"columns": names})
    replace(made.generator, settings=settings).save(options.out)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in made.seconds.items())
    print(f"{options.out}: {table.shape[0]} rows, {table.shape[1]} columns ({seconds})")


def _sample(options: argparse.Namespace) -> None:
    if options.n < 1:
        raise ValueError(f"-n: expected at least 1, got {options.n}")
    _check_out(options.out, *TABLES)
    generator = load(options.model)
    rows = np.asarray(generator.sample(jax.random.key(options.seed), options.n))
    _write(options.out, rows, json.loads(generator.settings).get("columns"))
    print(f"{options.out}: {len(rows)} rows, {rows.shape[1]} columns")


def _density(options: argparse.Namespace) -> None:
    _check_out(options.out, *TABLES)
    generator = load(options.model)
    table, names = datasets.read(options.data, options.array)
    known = json.loads(generator.settings).get("columns")
    if names and known and names != known:
        raise ValueError(f"{options.data}: expected the model's columns {known}, got {names}")
    found = generator.density(table)
    log_prob, certified = (np.asarray(part) for part in (found.log_prob, found.certified))
    _write(options.out, np.stack([log_prob, certified], 1), ["log_prob", "certified"])
    mean = f"{log_prob[certified].mean():.4g} nats" if certified.any() else "none"
    print(f"{options.out}: {len(table)} rows, {certified.mean():.1%} certified, their mean {mean}")


def _plot(options: argparse.Namespace) -> None:
    _check_out(options.out, ".png", ".pdf", ".svg")
    if options.columns < 1:
        raise ValueError(f"--columns: expected at least 1, got {options.columns}")
    if len(options.data) > 3:
        raise ValueError(f"DATA: expected one to three tables, got {len(options.data)}")
    tables, names = {}, None
    for path in options.data:
        found, header = datasets.read(path, options.array)
        tables[path.stem if path.stem not in tables else str(path)], _ = as_table(found, str(path))
        names = names or header
    widths = {name: table.shape[1] for name, table in tables.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"DATA: expected tables of equally many columns, got {widths}")
    figure = plotting.plot_pairs(tables, columns=options.columns, names=names)
    with moved_into_place(options.out) as aside:
        figure.savefig(aside)
    print(f"{options.out}: {', '.join(f'{name} ({len(t)} rows)' for name, t in tables.items())}")


def _export(options: argparse.Namespace) -> None:
    _check_out(options.out)
    load(options.model).export(options.out)
    print(f"{options.out}: call it with jax.export.deserialize, see Generator.export")


def _demo(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    start, report, histories = time.perf_counter(), {}, {}
    rows = 500 if options.quick else 5000
    settings: dict[str, Any] = dict(pairs=20_000, encoder=False)
    if options.quick:
        settings = QUICK | dict(encoder=False)
    names = ("checkerboard", "two_spirals", "breast_cancer", "wine")
    for index, name in enumerate(names[1::2] if options.quick else names):
        key = jax.random.key(index)
        if name in datasets.TABLES:
            train, test, floor = datasets.split(0, datasets.TABLES[name](), 0.5, 0.25, 0.25)
        else:
            points = np.asarray(
                datasets.TWO_DIMENSIONAL[name](jax.random.fold_in(key, 1), 3 * rows)
            )
            train, test, floor = np.split(points, 3)
        made = fit_stages(
            jax.random.fold_in(key, 2), train, progress=sys.stderr.isatty(), **settings
        )
        clock = time.perf_counter()
        samples = np.asarray(
            made.generator.sample(jax.random.fold_in(key, 3), max(len(test), 10_000))
        )
        made.seconds["sampling"] = time.perf_counter() - clock
        report[name] = _judge(made, samples, train, test, floor)
        histories[name.replace("_", " ")] = made.history
        _draw(options.out, name, made, samples, train, test)
    plotting.plot_history(histories).savefig(options.out / "training.png")
    write_text(options.out / "metrics.json", json.dumps(report, indent=1))
    print(_table(report))
    print(
        f"\n{time.perf_counter() - start:.0f} s in all; pictures and metrics.json in {options.out}/"
    )


def _reproduce(options: argparse.Namespace) -> None:
    chosen = {"pairs": options.published_pairs, "steps": options.published_steps}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    for name, value in chosen.items():
        if value < 2:
            raise ValueError(f"--published-{name}: expected at least 2, got {value}")
    runs = {}
    for problem in reproduce.problems(options.what, options.data, options.quick):
        settings = replace(reproduce.default_settings(problem.name), **chosen)
        small: dict[str, Any] = {}
        if options.quick:
            settings = reproduce.quick(settings)
            small = QUICK | dict(refine=0)
        runs[problem.name] = reproduce.run(
            problem, options.out / problem.name, settings=settings, seed=options.seed,
            progress=sys.stderr.isatty(), **small,
        )  # fmt: skip
        print(f"{problem.name}\n{comparison.as_text(runs[problem.name])}\n")
        if changed := runs[problem.name]["published"]["reduced"]:
            print(f"The published column is reduced: {changed}.\n")
    rows = "Columns standardised. Moments and sliced Wasserstein of all draws; other metrics are means over "
    rows += "up to five sets of as many draws as held-out rows (up to 10,000)."
    print(f"report: {comparison.write_report(options.out, runs, rows)}")


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
