"""The whole method in one call: rows in, generator out."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array

from mcscore._arrays import shapes
from mcscore._validation import as_key, at_least, of_type
from mcscore.frames import FrameKind
from mcscore.generators.generator import Generator
from mcscore.generators.labelling import Labelling, generate_pairs
from mcscore.generators.networks import MLP
from mcscore.generators.pairs import Pairs
from mcscore.generators.refinement import Agreement, Refinement, agreement
from mcscore.generators.refinement import refine as refine_density
from mcscore.generators.training import History, Training, train
from mcscore.mixtures.building import check_law, joined, mixture
from mcscore.mixtures.kernels import Kernel
from mcscore.mixtures.selection import Auto
from mcscore.mixtures.value import Mixture
from mcscore.parallel import mesh_of, without_context
from mcscore.schedules import Cosine, Schedule, check_schedule
from mcscore.storage import Checkpoint

LABEL_STEPS = 5
INTEGRATION = {"steps", "tolerance", "solver", "stepsize_controller", "clock"}
P = ParamSpec("P")
R = TypeVar("R")


class Fit(NamedTuple):
    """Everything that ``fit`` made on the way, and the seconds each stage took.

    ``agreement`` is None where nothing was refined, without an encoder or where the law has no density
    (``Dirac()``).
    """

    generator: Generator
    mixture: Mixture
    pairs: Pairs
    history: History
    schedule: Schedule
    seconds: dict[str, float]
    agreement: Agreement | None = None
    refinement: Refinement | None = None
    __repr__ = shapes


def fit_stages(
    key: Array,
    x: Any,
    *,
    condition: Any = None,
    kernel: Kernel = Auto(most_rows=12_000),
    frame: FrameKind | None = None,
    schedule: Schedule = Cosine(),
    weights: Any = None,
    groups: Any = None,
    bounds: Mapping[Any, Any] | None = None,
    periodic: Mapping[Any, Any] | None = None,
    pairs: int = 50_000,
    labelling: Mapping[str, Any] | None = None,
    network: MLP = MLP(),
    encoder: bool = True,
    refine: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int | None = None,
    batch_size: int | None = 512,
    validation: float = 0.1,
    patience: int | None = None,
    ema: float = 0.995,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Fit:
    """Return the generator with the law, the labels and the history behind it.

    Args:
        key: Random key.
        x: Data (n, d): an array, DataFrame, memory map or anything NumPy can view as numbers.
        condition: Columns (n, k) on which ``x`` is to depend, or names of columns of ``x``: the generator
            then samples, for a million different conditions as for one, in one pass.
        kernel: Which Gaussian each datum carries; chosen by held-out likelihood by default.
        frame: Coordinates in which the law lives; chosen too by default.
        schedule: How the law is diffused. ``Dirac()`` needs one with ``sigma(0) > 0``: ``Linear()``.
        weights: Non-negative weights of the rows.
        groups: Which rows belong together, as ``mixture`` takes them.
        bounds: Ends of columns, by name or number.
        periodic: Periods of columns, by name or number.
        pairs: Number of labeled pairs.
        labelling: Further options of ``generate_pairs``, except ``conditions``. Where they don't say how to
            integrate: five steps, 16 evaluations; ``pairs.report`` has their error.
        network: Architecture of the generator.
        encoder: Train the encoder too, from which ``gen.log_prob`` starts.
        refine: Steps that bring the generator's density closer to the law's (see ``mcscore.refine``);
            by default 1,000 with an encoder and at most 12 columns, beyond which they cost minutes.
        optimizer: See ``train``, like the options that follow.
        epochs: Passes over the pairs, at most.
        batch_size: Pairs per step.
        validation: Share of the pairs held out.
        patience: Epochs without a better validation loss before stopping.
        ema: Decay per step of the averaged weights.
        checkpoint: Folder in which labels, training and refining are kept as they come, to go on after an
            interruption: to the bit, on the same kind of device. The law is found again, from the key.
        progress: Show progress bars.
        mesh: Of devices that divide labels and training; by default the context's, if any.

    Raises:
        ValueError: Before any work, naming the column: NaN, inf, constant or duplicate columns, fewer
            rows than columns, wrong rank, empty input, integers beyond 2^53; naming the option: out of
            range or unknown, or ``refine`` asked for with ``Dirac()``, whose law has no density; if
            ``checkpoint`` belongs to another run, naming what differs.
    """
    key = as_key(key)
    law_key, pair_key, train_key, refine_key, check_key = jax.random.split(key, 5)
    table = joined(x, condition, weights)
    table.require_spread()
    at_least(2, pairs=pairs)
    pairs = int(pairs)
    check_law(kernel, frame)
    check_schedule(schedule)
    if refine is not None:
        at_least(0, refine=refine)
    if refine and not kernel.has_density:
        raise ValueError(f"refine: {kernel} has no density to refine to; use refine=0")
    if not kernel.has_density and float(schedule.variance(jnp.zeros(()))) == 0:
        raise ValueError(f"schedule: {kernel} needs one with sigma(0) > 0, such as mcs.Linear()")
    how = _labelling({} if labelling is None else labelling)
    training: dict[str, Any] = dict(
        network=network, optimizer=optimizer, epochs=epochs, batch_size=batch_size
    )
    training |= dict(validation=validation, patience=patience, ema=ema, encoder=encoder)
    Training(**training).held(pairs)  # checks them

    rows: dict[str, Any] = dict(groups=groups, bounds=bounds, periodic=periodic)
    folders: dict[str, Any] = dict.fromkeys(("labels", "training", "refining"))
    store = None
    if checkpoint is not None:
        settings = dict(key=key, kernel=kernel, frame=frame, schedule=schedule, pairs=pairs)
        settings |= dict(x=table.values, weights=table.weights, columns=table.columns) | rows
        settings |= {name: value for name, value in training.items() if name != "optimizer"}
        settings |= dict(condition=table.given, labelling=how, refine=refine)
        settings["groups"] = None if groups is None else np.asarray(groups).astype(str)
        store = Checkpoint(checkpoint, settings)
        folders = {name: Path(checkpoint) / name for name in folders}

    mesh, seconds = mesh_of(mesh), dict[str, float]()
    with without_context():  # the rest stays on one device
        with _timed("mixture", seconds):
            try:
                law = mixture(table, kernel=kernel, frame=frame, key=law_key, **rows)
            except ValueError:
                if store:
                    store.forget()  # a call that failed has no folder
                raise
        how = dict(checkpoint=folders["labels"], mesh=mesh, progress=progress) | how
        with _timed("labels", seconds):
            made = generate_pairs(pair_key, law, schedule, pairs, **how)
        how = dict(checkpoint=folders["training"], mesh=mesh, progress=progress)
        with _timed("training", seconds):
            generator, history = train(train_key, made, **how, **training)
        dense = encoder and float(law.width) > 0
        if refine is None:
            refine = 1000 if dense and law.dimension <= 12 else 0
        refined, agrees = None, None
        how = dict(checkpoint=folders["refining"], progress=progress)
        if refine:
            with _timed("refining", seconds):
                generator, refined = refine_density(
                    refine_key, generator, law, made, steps=refine, **how
                )
            agrees = refined.after if refined.kept else refined.before
        elif dense:
            with _timed("density", seconds):
                agrees = agreement(check_key, generator, law)
    about = dict(
        kernel=repr(kernel) if law.report is None else law.report.kernel,
        frame=law.report and law.report.frame,
        schedule=repr(schedule),
        pairs=pairs,
        log_likelihood=law.report and law.report.log_likelihood,
        rows=len(table),
        columns=law.columns,
        condition=law.condition_columns,
        validation_loss=float(np.nanmin(history.validation_loss)),
        density=agrees and agrees._asdict(),
    )
    generator = replace(generator, about=about, law=law)
    return Fit(generator, law, made, history, schedule, seconds, agrees, refined)


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _labelling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``generate_pairs``, checked; the default number of steps if they name none."""
    of_type(Mapping, "dict(steps=9)", labelling=options)
    known = {field.name for field in fields(Labelling)}
    unknown = sorted(map(str, set(options) - known - {"checkpoint"}))
    if unknown:
        names = ", ".join(sorted(known | {"checkpoint"}))
        raise ValueError(f"labelling: expected options {names}; got {unknown[0]!r}")
    how = dict(options)
    if INTEGRATION.isdisjoint(how):
        how["steps"] = LABEL_STEPS
    Labelling(**{name: value for name, value in how.items() if name in known})
    return how


def _options_of(stages: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function of ``**options`` the signature of the one that it hands them to."""

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        signature, hints = inspect.signature(stages), inspect.signature(function)
        returned = signature.replace(return_annotation=hints.return_annotation)
        function.__signature__ = returned  # type: ignore[attr-defined]
        return function

    return decorate


@_options_of(fit_stages)
def fit(key: Array, x: Any, **options: Any) -> Generator:
    """Return a one-step generator of the rows of ``x``, in the units of ``x``.

    Takes the options of ``fit_stages`` and raises its errors.

    >>> x = jax.random.normal(jax.random.key(0), (300, 2)) * 5 + 100
    >>> network = MLP(width=16, depth=1)
    >>> gen = fit(jax.random.key(1), x, pairs=500, network=network, epochs=3, encoder=False)
    >>> gen.sample(jax.random.key(2), 10).shape
    (10, 2)
    """
    return fit_stages(key, x, **options).generator
