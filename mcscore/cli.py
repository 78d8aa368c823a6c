"""The command line: ``mcscore demo | fit | sample | density | plot | reproduce | export``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mcscore import comparison, datasets, demo, plotting, reproduce
from mcscore.files import moved_into_place
from mcscore.generator import load
from mcscore.pipeline import fit_stages
from mcscore.tables import as_table


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, or 2 after a message on bad input."""
    parser = argparse.ArgumentParser(
        prog="mcscore",
        description="Training-free score estimation and supervised one-step generative models.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    show = commands.add_parser(
        "demo", help="run the whole method on built-in data, with a table and pictures"
    )
    show.add_argument(
        "--out", default="out", type=Path, help="folder for figures and metrics.json (default: out)"
    )
    show.add_argument("--quick", action="store_true", help="small and rough, to see that it works")
    show.set_defaults(run=_demo)

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


@contextmanager
def _about(source: Path | str) -> Iterator[None]:
    """Let errors about the argument ``x`` name the ``source`` of the table instead."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(f"{source}{text[1:]}" if text.startswith("x:") else text) from error


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
    with _about(options.data):
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
    with _about(options.data):
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
    print(demo.run(options.out, quick=options.quick, progress=sys.stderr.isatty()))


def _reproduce(options: argparse.Namespace) -> None:
    chosen = {"pairs": options.published_pairs, "steps": options.published_steps}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    for name, value in chosen.items():
        if value < 2:
            raise ValueError(f"--published-{name}: expected at least 2, got {value}")
    runs = {}
    with _about(options.what):
        problems = reproduce.problems(options.what, options.data, options.quick)
    for problem in problems:
        settings = replace(reproduce.default_settings(problem.name), **chosen)
        small: dict[str, Any] = {}
        if options.quick:
            settings = reproduce.quick(settings)
            small = demo.QUICK | dict(refine=0)
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
