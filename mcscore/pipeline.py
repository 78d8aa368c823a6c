"""The whole method in one call: rows in, generator out."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore.generator import Generator
from mcscore.kernels import Kernel
from mcscore.mixtures import Mixture, mixture
from mcscore.networks import MLP
from mcscore.pairs import Pairs, generate_pairs
from mcscore.refinement import Agreement, Refinement, agreement
from mcscore.refinement import refine as refine_density
from mcscore.schedules import Cosine, Schedule
from mcscore.selection import Auto
from mcscore.shown import shapes
from mcscore.tables import as_table
from mcscore.training import History, train

LABEL_STEPS = 5
INTEGRATION = {"steps", "tolerance", "solver", "stepsize_controller", "clock"}


class Fit(NamedTuple):
    """Everything that ``fit`` made on the way, and the seconds each stage took.

    ``agreement`` is None without an encoder or where the law has no density (``Dirac()``).
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


def fit_stages(
    key: Array,
    x: Any,
    *,
    kernel: Kernel = Auto(most_rows=12_000),
    frame: Any = None,
    schedule: Schedule = Cosine(),
    weights: Any = None,
    pairs: int = 50_000,
    labelling: Mapping[str, Any] | None = None,
    network: MLP = MLP(),
    encoder: bool = True,
    refine: int | None = None,
    progress: bool = False,
    **training: Any,
) -> Fit:
    """Return the generator with the law, the labels and the history behind it.

    Args:
        key: Random key.
        x: Data (n, d): an array, DataFrame, memory map or anything NumPy can view as numbers.
        kernel: Which Gaussian each datum carries; chosen by held-out likelihood by default.
        frame: Coordinates in which the law lives; chosen too by default.
        schedule: How the law is diffused. ``Dirac()`` needs one with ``sigma(0) > 0``: ``Linear()``.
        weights: Non-negative weights of the rows.
        pairs: Number of labelled pairs.
        labelling: Further options of ``generate_pairs``. Where they don't say how to integrate: five steps,
            16 evaluations; ``pairs.report`` has their error.
        network: Architecture of the generator.
        encoder: Train the encoder too, from which ``gen.log_prob`` starts.
        refine: Steps that bring the generator's density closer to the law's (see ``mcscore.refine``);
            by default 1,500 with an encoder and at most 12 columns, beyond which they cost minutes.
        progress: Show progress bars.
        **training: Further options of ``train``.

    Raises:
        ValueError: Before any work, naming the column: NaN, inf, constant or duplicate columns, fewer
            rows than columns, wrong rank, empty input, integers beyond 2^53; ``refine`` negative, or
            asked for with ``Dirac()``, whose law has no density.
        ImportError: Without scikit-learn, by which rows are clustered: ``pip install mcscore[data]``.
    """
    check_table(x)
    if refine is not None and refine < 0:
        raise ValueError(f"refine: expected a number of steps, got {refine}")
    pair_key, train_key = jax.random.split(key)
    seconds, start = {}, time.perf_counter()
    law = mixture(x, kernel=kernel, weights=weights, frame=frame)
    if refine:
        law.require_width("refine")
    seconds["mixture"], start = time.perf_counter() - start, time.perf_counter()
    how: dict[str, Any] = dict(labelling or {})
    if INTEGRATION.isdisjoint(how):
        how["steps"] = LABEL_STEPS
    made = generate_pairs(pair_key, law, schedule, pairs, progress=progress, **how)
    seconds["labels"], start = time.perf_counter() - start, time.perf_counter()
    generator, history = train(
        train_key, made, network=network, encoder=encoder, progress=progress, **training
    )
    seconds["training"], start = time.perf_counter() - start, time.perf_counter()
    refined, dense = None, encoder and float(law.width) > 0
    if refine is None:
        refine = 1500 if dense and law.dimension <= 12 else 0
    if refine:
        generator, refined = refine_density(
            jax.random.fold_in(train_key, 1), generator, law, made, steps=refine, progress=progress
        )
        seconds["refining"], start = time.perf_counter() - start, time.perf_counter()
    agrees = None
    if refined is not None:
        agrees = refined.after if refined.kept else refined.before
    elif dense:
        agrees = agreement(jax.random.fold_in(pair_key, 1), generator, law)
        seconds["density"] = time.perf_counter() - start
    about: dict[str, Any] = dict(kernel=law.report.kernel, frame=law.report.frame)
    about |= dict(schedule=repr(schedule), pairs=pairs, log_likelihood=law.report.log_likelihood)
    about |= dict(
        rows=len(np.asarray(x)), validation_loss=float(np.nanmin(history.validation_loss))
    )
    about |= dict(density=agrees and agrees._asdict())
    generator = replace(generator, settings=json.dumps(about))
    return Fit(generator, law, made, history, schedule, seconds, agrees, refined)


def check_table(x: Any) -> None:
    """Raise ``ValueError`` for tables from which no law of full dimension can be learned."""
    names = getattr(x, "columns", None)
    label = (lambda j: f"column {j}") if names is None else (lambda j: f"column {names[j]!r}")
    raw = np.asarray(x)
    table, dtype = as_table(x)
    n, d = table.shape
    if np.issubdtype(raw.dtype, np.integer) and (np.abs(table) > 2.0**53).any():
        j = int(np.argmax(np.abs(table).max(0)))
        raise ValueError(
            f"x: integers of {label(j)} exceed 2^53 and would be rounded; convert them first"
        )
    if n <= d:
        raise ValueError(f"x: expected more rows than columns, got {n} rows and {d} columns")
    centred = table - table.mean(0)
    scale = np.sqrt((centred**2).mean(0))
    largest = np.abs(table).max(0)
    for j in np.flatnonzero(scale <= 1e-13 * largest):
        raise ValueError(f"x: {label(j)} is constant ({table[0, j]:g}); leave it out")
    for j in np.flatnonzero(scale <= 4 * np.finfo(dtype).eps * largest):
        raise ValueError(
            f"x: {label(j)} varies by {scale[j]:.3g} around {table[0, j]:g}, less than {dtype} resolves; "
            "subtract an offset or enable float64"
        )
    centred /= scale
    correlation = centred.T @ centred / n
    twins = np.argwhere(np.triu(np.abs(correlation) > 1 - 1e-12, 1))
    if len(twins):
        first, second = twins[0]
        raise ValueError(
            f"x: {label(second)} repeats {label(first)} (correlation {correlation[first, second]:+.0f}); "
            "leave one out"
        )
    rank = np.linalg.matrix_rank(correlation, tol=1e-10 * d, hermitian=True)
    if rank < d:
        text = (
            f"x: columns are linearly dependent (rank {rank} of {d}); samples will be noisy there"
        )
        warnings.warn(text, stacklevel=3)
