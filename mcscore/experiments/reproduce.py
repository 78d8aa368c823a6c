"""The paper's experiments in two columns: the method as published, and this library's defaults.

``run`` takes a table split into training and test rows, computes both columns with the same metrics,
and writes ``results.json``, the paper's figures and one self-contained ``report.html``. Whatever is
finished is kept and not computed again, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore import datasets, plotting
from mcscore._arrays import host_generator
from mcscore._optional import check_experiments
from mcscore._validation import Table, two_tables
from mcscore.experiments import published
from mcscore.experiments.comparison import COLUMNS
from mcscore.experiments.evaluation import ROWS, chance, judge
from mcscore.experiments.published import SCHEDULE, WIDTHS, Settings
from mcscore.flows.fields import log_density
from mcscore.generators.generator import Generator
from mcscore.generators.pairs import Pairs
from mcscore.pipeline import fit_stages
from mcscore.storage import fingerprint, kept, replacing, write_text

SAMPLES = 100_000  # drawn and timed, as the paper does
OF_LABELS = ("classifier", "memorization")  # the figures of a perfect network


class Made(NamedTuple):
    """One column before it is judged; ``own_density`` is None for a generator without a density."""

    generator: Generator
    pairs: Pairs
    law_density: Callable[[np.ndarray], Any]
    own_density: Callable[[np.ndarray], Any] | None
    seconds: dict[str, float]
    notes: dict[str, Any]


class Problem(NamedTuple):
    """A table to reproduce: its name, rows to learn from and rows to judge by."""

    name: str
    train: np.ndarray
    test: np.ndarray


def problems(what: str, data: Path | None, quick: bool = False) -> list[Problem]:
    """Return the tables behind "2d", the name of a benchmark table, or the path of a file.

    Args:
        what: "2d", "power", "gas", "hepmass", "miniboone", "bsds300", or a file: ``.npz`` with arrays
            ``train`` and ``test``, or one table as ``.npy`` or ``.csv``, a fifth of it kept to judge by.
        data: Folder of the benchmark tables' files, see ``datasets.uci``.
        quick: Few rows.

    Raises:
        ValueError: If ``what`` is none of these, or ``data`` is missing for a benchmark table.
    """
    if what == "2d":
        rows, key = (500 if quick else 10_000), jax.random.key(0)
        draws = (
            (name, np.asarray(datasets.TWO_DIMENSIONAL[name](key, 2 * rows)))
            for name in ("checkerboard", "two_spirals", "eight_gaussians")
        )
        return [Problem(name, x[:rows], x[rows:]) for name, x in draws]
    if what in WIDTHS or what == "bsds300":
        if data is None:
            raise ValueError(f"--data: expected the folder of {what}'s files, see datasets.fetch")
        splits = datasets.uci(what, data)
        found = Problem(what, splits.train, splits.test)
    else:
        found = _file(Path(what))
    if quick:
        found = Problem(found.name, found.train[:500], found.test[:500])
    two_tables(found.train, found.test, ("train", "test"))[0].require_spread()
    return [found]


def _file(path: Path) -> Problem:
    name = path.stem.removesuffix("_partial")
    if not path.is_file():
        raise ValueError(f"DATA: expected 2d, {', '.join(WIDTHS)} or a file, got {path}")
    if path.suffix == ".npz":
        train, test = (datasets.read(path, part)[0] for part in ("train", "test"))
        return Problem(name, train, test)
    table = Table.of(datasets.read(path)[0], name=str(path))
    return Problem(name, *datasets.split(jax.random.key(0), table.values, 0.8, 0.2))


def run(
    key: Array,
    problem: Problem,
    out: Path,
    *,
    settings: Settings | None = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Compute both columns for one table and return ``{"published": ..., "mcscore": ...}``.

    Args:
        key: Random key.
        problem: The table.
        out: Folder to write to, and to resume from.
        settings: Settings of the published method; by default the paper's for the table's name.
        progress: Show bars.
        **options: Options of ``fit_stages``, for the column of this library.
    """
    check_experiments("reproduce")
    settings = settings or default_settings(problem.name)
    data = problem.train, problem.test
    published_key, own_key, floor_key, judging_key = jax.random.split(key, 4)
    results: dict[str, Any] = {}
    for column, how in (("published", settings), ("mcscore", options)):
        folder = out / f"{column}-{fingerprint(data, key, how)[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "results.json"
        if (found := kept(path)) is None:
            if column == "published":
                made = _published(published_key, problem, settings, folder, progress)
            else:
                made = _mcscore(own_key, problem, progress, options)
            write_text(path, json.dumps(_judged(judging_key, problem, made, folder), indent=1))
            found = json.loads(path.read_text())
        results[column] = found | dict(samples=f"{folder.name}/samples.npy")
    _add_full_size(results, settings, default_settings(problem.name))
    path = out / f"floor-{fingerprint(data, key)[:12]}.json"
    if (floor := kept(path)) is None:
        write_text(path, json.dumps(_floor(floor_key, problem)))
        floor = json.loads(path.read_text())
    results["floor"] = dict(metrics=floor)
    results["published"]["settings"] = asdict(settings)
    results["published"]["reduced"] = reduced(settings, problem.name)
    _draw(problem, results, out)
    write_text(out / "results.json", json.dumps(results, indent=1))
    return results


def _add_full_size(results: dict[str, Any], settings: Settings, paper: Settings) -> None:
    """Add the seconds that the paper's own numbers of pairs and steps would take, in proportion."""
    seconds = results["published"]["seconds"]
    labels = seconds["labels"] * (paper.pairs * paper.euler) / (settings.pairs * settings.euler)
    steps = (paper.pairs * paper.steps) / (settings.pairs * settings.steps)
    seconds["total in full size"] = labels + seconds["training"] * steps + seconds["sampling"]
    results["mcscore"]["seconds"]["total in full size"] = results["mcscore"]["seconds"]["total"]


def _floor(key: Array, problem: Problem) -> dict[str, Any]:
    """Return the metrics of the training rows themselves: how near the test rows can be expected."""
    order_key, judging_key, chance_key = jax.random.split(key, 3)
    order = host_generator(order_key).permutation(len(problem.train))[:SAMPLES]
    rows = np.asarray(problem.train)[order]
    found = judge(judging_key, rows, problem.train, problem.test)
    found = {name: value for name, value in found.items() if "memorization" not in name}
    return found | chance(chance_key, problem.train, problem.test)


def default_settings(name: str) -> Settings:
    """Return the paper's settings for a table; 256 neurons for tables that it doesn't have."""
    name = name.lower()
    chunk = 2000 if name == "miniboone" else 5000
    return Settings(width=WIDTHS.get(name, 256), chunk_size=chunk)


# --- the two columns -----------------------------------------------------------------------------


def _published(key: Array, problem: Problem, settings: Settings, out: Path, progress: bool) -> Made:
    label_key, train_key = jax.random.split(key)
    seconds = _Seconds(out / "seconds.json")
    law, pairs = seconds.of(
        "labels",
        lambda: published.label(
            label_key, problem.train, settings, checkpoint=out / "pairs", progress=progress
        ),
    )
    generator, losses = seconds.of(
        "training",
        lambda: published.train(
            train_key, pairs, settings, checkpoint=out / "training", progress=progress
        ),
    )

    def density(x: np.ndarray) -> np.ndarray:
        inside = np.asarray(law.frame.forward(x), law.dtype)
        return np.asarray(log_density(inside, 0.0, law, SCHEDULE)) + np.asarray(
            law.frame.log_det(x)
        )

    return Made(generator, pairs, density, None, seconds.known, dict(loss=float(losses[-1])))


def _mcscore(key: Array, problem: Problem, progress: bool, options: Mapping[str, Any]) -> Made:
    made = fit_stages(key, problem.train, progress=progress, **options)
    notes = {name: made.generator.about[name] for name in ("kernel", "frame")}
    own = made.generator.log_prob if made.generator.encoder is not None else None
    seconds = {name: value for name, value in made.seconds.items() if name != "density"}
    return Made(made.generator, made.pairs, made.mixture.log_prob, own, seconds, notes)


class _Seconds:
    """Seconds per stage, added up over interrupted runs."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[str, float] = kept(path) or {}

    def of(self, stage: str, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns and add its seconds, also those of a failure."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            spent = time.perf_counter() - start
            self.known[stage] = self.known.get(stage, 0.0) + spent
            write_text(self.path, json.dumps(self.known))


def _judged(key: Array, problem: Problem, made: Made, out: Path) -> dict[str, Any]:
    """Draw, time and judge one generator and the labels it learned from; store the draws."""
    warm_key, sample_key, label_key, judging_key = jax.random.split(key, 4)
    np.asarray(made.generator.sample(warm_key, SAMPLES))  # compile
    start = time.perf_counter()
    samples = np.asarray(made.generator.sample(sample_key, SAMPLES))
    seconds = made.seconds | dict(sampling=time.perf_counter() - start)
    with replacing(out / "samples.npy") as aside:
        np.save(aside, samples[:ROWS])  # for the figures
    labels = np.asarray(made.pairs.labels())
    labels = judge(label_key, labels, problem.train, problem.test, mmd_rows=0)
    figures = {f"label_{name}": v for name, v in labels.items() if name.startswith(OF_LABELS)}
    figures |= judge(judging_key, samples, problem.train, problem.test)
    test = np.asarray(problem.test)[:ROWS]
    figures["law_log_likelihood"] = float(np.mean(np.asarray(made.law_density(test), np.float64)))
    if made.own_density is not None:
        values = np.asarray(made.own_density(test), np.float64)
        figures["log_likelihood"] = float(np.nanmean(values))
        figures["log_likelihood_certified"] = float(np.isfinite(values).mean())
    total = sum(seconds.values())
    return dict(metrics=figures, seconds=seconds | dict(total=total), notes=made.notes)


# --- settings and figures --------------------------------------------------------------------------


def reduced(settings: Settings, name: str) -> str:
    """Return what of the published settings was made smaller, in words; empty if nothing was."""
    paper = asdict(default_settings(name))
    changed = {k: (paper[k], v) for k, v in asdict(settings).items() if paper[k] != v}
    return ", ".join(f"{k} {now:,} instead of {then:,}" for k, (then, now) in changed.items())


def chosen_settings(name: str, pairs: int | None, steps: int | None, small: bool) -> Settings:
    """Return the published settings for a table with fewer pairs or steps, or small ones all over."""
    changed = {key: n for key, n in (("pairs", pairs), ("steps", steps)) if n is not None}
    settings = replace(default_settings(name), **changed)
    return quick(settings) if small else settings


def quick(settings: Settings) -> Settings:
    """Return settings small enough to see that everything runs."""
    small = dict(pairs=400, chunk_size=200, steps=100, euler=20, minibatch=200)
    return replace(settings, width=min(settings.width, 32), **small)


def _draw(problem: Problem, results: Mapping[str, Any], out: Path) -> None:
    """Write the paper's figures: marginals, pairs of columns, KL per column."""
    sets = {"held out": np.asarray(problem.test)[:ROWS]}
    sets |= {title: np.load(out / results[c]["samples"]) for c, title in COLUMNS.items()}
    figures = {"marginals": plotting.plot_marginals(sets, title=problem.name)}
    if problem.train.shape[1] == 2:
        figures["pairs"] = plotting.plot_samples(sets, title=problem.name)
    else:
        figures["pairs"] = plotting.plot_pairs(sets, title=problem.name)
    kl = {title: results[c]["metrics"]["columns"]["kl"] for c, title in COLUMNS.items()}
    figures["kl"] = plotting.plot_columns(kl, ylabel="KL(held out || generated), nats")
    for name, figure in figures.items():
        with replacing(out / f"{name}.png") as aside:
            figure.savefig(aside)
