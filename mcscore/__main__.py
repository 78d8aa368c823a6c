"""The command line: ``mcscore demo | fit | sample | density | condition | impute | plot | ...``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import platformdirs
import typer

from mcscore import __version__, datasets, inference, plotting
from mcscore._numbers import column_numbers
from mcscore._validation import Table, at_least
from mcscore.datasets.reading import write
from mcscore.experiments import demo as demonstration
from mcscore.experiments import report, reproduce, systems
from mcscore.generators import Generator, load
from mcscore.pipeline import fit_stages
from mcscore.storage import replacing

app = typer.Typer(
    name="mcscore",
    help="Training-free score estimation and supervised one-step generative models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
PROGRAMS = platformdirs.user_cache_path("mcscore") / "programs"
TABLES = (".csv", ".npy")
OPTIONS = {
    "--bounds": "COLUMN=LOW:HIGH", "--periodic": "COLUMN=PERIOD", "--given": "COLUMN=VALUE",
}  # fmt: skip
ROWS = "rows as .csv (with or without a header), .npy or .npz"
Data = Annotated[Path, typer.Argument(help=ROWS, show_default=False)]
Model = Annotated[Path, typer.Argument(help="file written by mcscore fit", show_default=False)]
Seed = Annotated[int, typer.Option(help="random seed")]
Quick = Annotated[bool, typer.Option("--quick", help="small and rough, to see that it works")]
Member = Annotated[
    str | None, typer.Option("--array", help="array in an .npz file; its only one, or 'train'")
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="whether a .csv starts with names; by default found"),
]


Given = Annotated[
    list[str] | None, typer.Option(help="a condition's value, by name or number: temp=3.2 or 0=3.2")
]


def out(text: str) -> Any:
    """Return the required option ``--out``."""
    return typer.Option("--out", help=text, show_default=False)


# --- tables in and out ---------------------------------------------------------------------------


def _check_out(path: Path, *suffixes: str, keep: Sequence[Path] = ()) -> None:
    """Raise before any work if ``path`` cannot be written, has none of the ``suffixes``, or is to be kept."""
    if any(other.exists() and path.exists() and path.samefile(other) for other in keep):
        raise ValueError(f"--out: {path} is read and would be lost; name another file")
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"--out: expected a {' or '.join(suffixes)} file, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(f"--out: cannot write {path}")


def _read(path: Path, array: str | None, header: bool | None = None) -> Table:
    rows, columns = datasets.read(path, array, header)
    return Table.of(rows, columns=columns, name=str(path))


def _by_column(option: str, given: Sequence[str], read: Callable[[str], Any]) -> dict[Any, Any]:
    """Return what an option such as ``age=0:`` says of every column, known by name or number."""
    found: dict[Any, Any] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            found[int(name) if name.isdecimal() else name] = read(value)
        except ValueError:
            raise ValueError(f"{option}: expected {OPTIONS[option]}, got {text!r}") from None
    return found


def _ends(text: str) -> tuple[float | None, float | None]:
    low, high = text.split(":")
    return float(low) if low else None, float(high) if high else None


def _columns(text: str) -> list[Any]:
    """Return names or numbers of columns, separated by commas."""
    return [int(name) if name.isdecimal() else name for name in map(str.strip, text.split(","))]


def _given_behind(
    table: Table, condition: list[Any], options: dict[str, dict[Any, Any]]
) -> tuple[Table, dict[str, dict[Any, Any]]]:
    """Return the table with its conditions behind, and what is said of columns by number, renumbered."""
    known = column_numbers(condition, table.values.shape[1], table.columns)
    order = [j for j in range(table.values.shape[1]) if j not in known] + known
    renumbered = {
        name: {order.index(j) if j in order else j: said for j, said in by_column.items()}
        for name, by_column in options.items()
    }
    return table.given_behind(known), renumbered


def _law(model: Any, path: Path) -> Any:
    """Return the law of a model, or the model if it is one."""
    if isinstance(model, Generator) and model.law is None:
        raise ValueError(f"{path}: was saved without its law")
    return model.law if isinstance(model, Generator) else model


def _conditions(model: Any, given: Sequence[str], file: Path | None, header: bool | None) -> Any:
    """Return what is to be handed to a model as its conditions."""
    if file is not None:
        if given:
            raise ValueError("--given: expected none beside --given-file")
        table = _read(file, None, header)
        names = model.condition_columns
        if table.columns and names:
            table = table.of_columns(column_numbers(list(names), len(table.columns), table.columns))
        return table.values
    values = _by_column("--given", given, float)
    if not values:
        return None
    names, k = model.condition_columns, model.condition_dimension
    numbers = column_numbers(list(values), max(k, 1), names)
    if k == 0 or len(values) != k:
        wanted = (
            f"{k} values ({names or 'by number'})" if k else "none, the model has no conditions"
        )
        raise ValueError(f"--given: expected {wanted}, got {list(given)}")
    return np.array(list(values.values()))[np.argsort(numbers)]


def _divided(table: Table, model: Any, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a model's columns of a table and, behind or by their names, its conditions."""
    names, given = model.columns, model.condition_columns
    d, k = model.dimension, model.condition_dimension
    known = None if names is None else [*names, *(given or ())]
    if table.columns and known and sorted(table.columns) != sorted(known):
        raise ValueError(f"{path}: expected the model's columns {known}, got {list(table.columns)}")
    if table.values.shape[1] != d + k:
        width = f"expected {d} columns as the model" + (f" and {k} conditions behind" if k else "")
        raise ValueError(f"{path}: {width}, got {table.values.shape[1]}")
    values = table.values
    if table.columns and known:
        values = values[:, [table.columns.index(name) for name in known]]
    return values[:, :d], values[:, d:] if k else None


def _save(generator: Any, path: Path) -> None:
    """Write a model; where that fails after all the work, elsewhere, and raise ``OSError`` saying where."""
    try:
        generator.save(path)
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix="mcscore-")) / path.name
        generator.save(other)
        raise OSError(f"--out: cannot write {path} ({error}); the model is in {other}") from error


# --- commands ------------------------------------------------------------------------------------


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for figures and metrics.json")] = Path("out"),
    quick: Quick = False,
) -> None:
    """Run the whole method on built-in data, with a table and pictures."""
    print(demonstration.run(out, quick=quick, progress=sys.stderr.isatty()))


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, out("model file to write (.safetensors)")],
    pairs: Annotated[int, typer.Option(help="labeled pairs")] = 50_000,
    condition: Annotated[
        str | None, typer.Option(help="columns on which the others depend: temp,pressure or 3,4")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="passes over them, at most; by default 2100 steps of 512")
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(help="steps that bring the density closer; by default 1000 up to 12 columns"),
    ] = None,
    bounds: Annotated[
        list[str] | None, typer.Option(help="a column's ends, by name or number: age=0: or 2=0:1")
    ] = None,
    periodic: Annotated[
        list[str] | None, typer.Option(help="a column's period, by name or number: phi=360")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="folder for finished parts: the same command goes on there")
    ] = None,
    seed: Seed = 0,
    array: Member = None,
    header: Header = None,
) -> None:
    """Learn a generator from a table."""
    _check_out(out, ".safetensors", keep=[data])
    columns: dict[str, dict[Any, Any]] = dict(
        bounds=_by_column("--bounds", bounds or [], _ends),
        periodic=_by_column("--periodic", periodic or [], float),
    )
    table = _read(data, array, header)
    how: dict[str, Any] = dict(epochs=epochs, refine=refine, progress=sys.stderr.isatty())
    if condition is not None:
        table, columns = _given_behind(table, _columns(condition), columns)
    made = fit_stages(jax.random.key(seed), table, pairs=pairs, checkpoint=resume, **columns, **how)
    _save(made.generator, out)
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in made.seconds.items())
    rows, width = table.values.shape
    print(f"{made.mixture.report}\n{out}: {rows} rows, {width} columns ({seconds})")


@app.command()
def sample(
    model: Model,
    out: Annotated[Path, out(".csv or .npy file to write")],
    n: Annotated[
        int | None,
        typer.Option("-n", help="number of rows, by default 10000; for each row of a file 1"),
    ] = None,
    given: Given = None,
    given_file: Annotated[
        Path | None, typer.Option(help="conditions, a row each: .csv, .npy or .npz")
    ] = None,
    seed: Seed = 0,
    header: Header = None,
) -> None:
    """Draw rows from a saved generator or law."""
    n = (10_000 if given_file is None else 1) if n is None else n
    at_least(1, **{"-n": n})
    _check_out(out, *TABLES, keep=[model, *([] if given_file is None else [given_file])])
    found = load(model)
    conditions = _conditions(found, given or [], given_file, header)
    if given_file is not None:
        conditions = np.repeat(conditions, n, 0)
        n = len(conditions)
    rows = np.asarray(found.sample(jax.random.key(seed), n, condition=conditions))
    write(out, rows, found.columns)
    print(f"{out}: {len(rows)} rows, {rows.shape[1]} columns")


@app.command()
def density(
    model: Model,
    data: Data,
    out: Annotated[Path, out(".csv or .npy file to write: log_prob, and with --network certified")],
    network: Annotated[
        bool, typer.Option("--network", help="of the network's samples, instead of the law's")
    ] = False,
    array: Member = None,
    header: Header = None,
) -> None:
    """Compute log densities of rows under the law of a saved model; conditions stand behind, or by name."""
    _check_out(out, *TABLES, keep=[model, data])
    found, table = load(model), _read(data, array, header)
    rows, conditions = _divided(table, found, data)
    if not network:
        log_prob = np.asarray(_law(found, model).log_prob(rows, condition=conditions))
        write(out, log_prob[:, None], ["log_prob"])
        print(f"{out}: {len(table)} rows, their mean {log_prob.mean():.4g} nats")
        return
    if not isinstance(found, Generator):
        raise ValueError(f"--network: {model} is a law, it has none")
    density = found.density(rows, conditions)
    log_prob, certified = (np.asarray(part) for part in (density.log_prob, density.certified))
    write(out, np.stack([log_prob, certified], 1), ["log_prob", "certified"])
    mean = f"{log_prob[certified].mean():.4g} nats" if certified.any() else "none"
    print(f"{out}: {len(table)} rows, {certified.mean():.1%} certified, their mean {mean}")


@app.command()
def condition(
    model: Model,
    out: Annotated[Path, out(".csv or .npy file to write")],
    given: Given = None,
    n: Annotated[int, typer.Option("-n", help="number of rows")] = 10_000,
    seed: Seed = 0,
) -> None:
    """Draw rows from a saved model's law, given values of some of its columns, exactly."""
    at_least(1, **{"-n": n})
    _check_out(out, *TABLES, keep=[model])
    law = _law(load(model), model).joint
    values = _by_column("--given", given or [], float)
    if not values:
        raise ValueError(
            f"--given: expected a column's value at least, such as {OPTIONS['--given']}"
        )
    part = law.condition(list(values), list(values.values()))
    rows = np.asarray(part.sample(jax.random.key(seed), n))
    write(out, rows, part.columns)
    print(f"{out}: {len(rows)} rows, {rows.shape[1]} columns")


@app.command()
def impute(
    model: Model,
    data: Data,
    out: Annotated[Path, out(".csv or .npy file to write; draws follow each other")],
    draws: Annotated[int, typer.Option(help="of every missing entry")] = 1,
    seed: Seed = 0,
    array: Member = None,
    header: Header = None,
) -> None:
    """Fill in missing entries of a table by draws from a saved model's law, given what each row knows."""
    at_least(1, **{"--draws": draws})
    _check_out(out, *TABLES, keep=[model, data])
    law = _law(load(model), model).joint
    rows, columns = datasets.read(data, array, header, missing=True)
    if columns and law.columns:
        order = column_numbers(list(law.columns), len(columns), columns)
        rows = rows[:, order]
    filled = inference.impute(jax.random.key(seed), law, rows, draws=draws)
    write(out, filled.reshape(-1, filled.shape[2]), law.columns or columns)
    missing = np.isnan(np.asarray(rows, np.float64)).sum()
    print(f"{out}: {len(rows)} rows, {missing} missing entries, {draws} draws")


@app.command()
def plot(
    data: Annotated[list[Path], typer.Argument(help=ROWS, show_default=False)],
    out: Annotated[Path, out("picture to write (.png, .pdf, .svg)")],
    columns: Annotated[int, typer.Option(help="how many of the first columns")] = 5,
    array: Member = None,
    header: Header = None,
) -> None:
    """Draw a picture of one to three tables."""
    _check_out(out, ".png", ".pdf", ".svg", keep=data)
    at_least(1, **{"--columns": columns})
    if len(data) > 3:
        raise ValueError(f"DATA: expected one to three tables, got {len(data)}")
    tables: dict[str, Table] = {}
    for k, path in enumerate(data):
        known = next((n for n in (path.stem, str(path)) if n not in tables), f"{path} ({k + 1})")
        tables[known] = _read(path, array, header)
    widths = {name: table.values.shape[1] for name, table in tables.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"DATA: expected tables of equally many columns, got {widths}")
    figure = plotting.plot_pairs(tables, columns=columns)
    with replacing(out) as aside:
        figure.savefig(aside)
    print(f"{out}: {', '.join(f'{name} ({len(t)} rows)' for name, t in tables.items())}")


@app.command()
def export(model: Model, out: Annotated[Path, out("file to write (.stablehlo)")]) -> None:
    """Write a saved generator's sampler as a StableHLO program."""
    _check_out(out, keep=[model])
    load(model).export(out)
    print(f"{out}: call it with jax.export.deserialize, see Generator.export")


@app.command("reproduce")
def reproduce_command(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="2d, sde, power, gas, hepmass, miniboone, bsds300, or an .npz (train, test), .npy or .csv",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="folder with the official files of the tables")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder to write to and resume from")] = Path("out"),
    seed: Seed = 0,
    quick: Quick = False,
    published_pairs: Annotated[
        int | None, typer.Option(min=2, help="fewer pairs than the paper's 200000, full batch")
    ] = None,
    published_steps: Annotated[
        int | None, typer.Option(min=2, help="fewer steps than the paper's 20000")
    ] = None,
) -> None:
    """Run the paper's experiment, as published and with this library's defaults; sde: learn known systems."""
    if what == "sde":
        print(systems.as_text(systems.run(jax.random.key(seed), out, quick=quick)))
        return print(
            f"results: {out / 'results.json'}, a picture of paths in each folder beside it"
        )
    runs = {}
    for problem in reproduce.problems(what, data, quick):
        settings = reproduce.chosen_settings(problem.name, published_pairs, published_steps, quick)
        small: dict[str, Any] = demonstration.QUICK | dict(refine=0) if quick else {}
        runs[problem.name] = reproduce.run(
            jax.random.key(seed), problem, out / problem.name, settings=settings,
            progress=sys.stderr.isatty(), **small,
        )  # fmt: skip
        print(f"{problem.name}\n{report.as_text(runs[problem.name])}\n")
        if changed := runs[problem.name]["published"]["reduced"]:
            print(f"The published column is reduced: {changed}.\n")
    rows = "Columns standardized. Moments and sliced Wasserstein of all draws; other metrics are means over "
    rows += "up to five sets of as many draws as held-out rows (up to 10,000)."
    print(f"report: {report.write_report(out, runs, rows)}")


def _version(wanted: bool | None) -> None:
    if wanted:
        print(f"mcscore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None,
        typer.Option("--version", help="show the version", callback=_version, is_eager=True),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help=f"keep compiled programs in {PROGRAMS}")
    ] = True,
) -> None:
    """Let JAX keep what it compiled for the next process: most of a first call's seconds are compilation."""
    if not cache:
        jax.config.update("jax_enable_compilation_cache", False)
    elif not getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009 - unknown to type checkers
        with suppress(OSError):  # then nothing is kept
            PROGRAMS.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 after a message on bad input, 130 when interrupted."""
    run: Callable[..., Any] = typer.main.get_command(app)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        run(arguments, prog_name="mcscore", standalone_mode=True)
    except SystemExit as end:  # of a usage error, too, which has been printed
        if end.code == 130:
            print("mcscore: interrupted", file=sys.stderr)
        return int(end.code or 0)
    except (ValueError, ImportError, OSError, RuntimeError, ArithmeticError) as error:
        command = next((word for word in arguments if not word.startswith("-")), "")
        print(f"mcscore {command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
