"""Building a mixture: rows are checked once, ties spread, and laid out as the kernel says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import on_device
from mcscore._numbers import column_numbers
from mcscore._validation import Table, as_key, at_least, of_type
from mcscore.frames import (
    Frame,
    FrameKind,
    Identity,
    merged,
    placed,
    suspected,
    told,
)
from mcscore.jet import Blocks, Evaluation
from mcscore.mixtures.conditional import conditional_on_last
from mcscore.mixtures.kernels import Choice, Dirac, Kernel
from mcscore.mixtures.layout import moments
from mcscore.mixtures.report import Report
from mcscore.mixtures.value import BLOCK_ROWS, Mixture


def mixture(
    x: Any,
    *,
    condition: Any = None,
    kernel: Kernel = Dirac(),
    weights: Any = None,
    groups: Any = None,
    bounds: Mapping[Any, Any] | None = None,
    periodic: Mapping[Any, Any] | None = None,
    frame: FrameKind | None = None,
    key: Array | None = None,
    block_rows: int = BLOCK_ROWS,
    evaluation: Evaluation | None = None,
) -> Any:
    """Return the law of the rows of ``x``, a `Mixture`: one Gaussian (or point) per row.

    With a ``condition`` it is the law of ``x`` given that, a `ConditionalMixture`.

    Equal rows are merged into weights; columns that are not continuous have their ties spread, and draws
    go back to their values. Host code, in float64; the result has the precision of ``x`` (float32 unless
    x64 is enabled).

    Args:
        x: Data, (n, d), anything NumPy can view as a table of finite numbers.
        condition: Columns (n, k) on which the law of ``x`` is to depend: a table, or names of columns of
            ``x`` that are taken out of it. ``Auto()`` then chooses by the held-out likelihood of ``x`` given
            these, with a bandwidth of their own where that helps. In ``bounds`` and ``periodic`` their
            numbers follow those of the columns that are left: names are safer.
        kernel: Which Gaussian each row carries.
        weights: Non-negative weights of the rows, (n,); equal by default. Rows of weight 0 are left out.
        groups: A label per row, (n,), of rows that belong together (one patient's, one chain's): they are
            held out together where the law is chosen by held-out likelihood.
        bounds: Ends of columns, by name or number: ``{"age": (0, None), 3: (0, 1)}``. No draw lies
            outside, and the density inside integrates to one. Kernels live in the coordinates of
            ``frames.BoundedFrame``. ``report.suspected`` names columns that seem to have ends.
        periodic: Periods of columns, ``{"phi": 2 * np.pi}``, or (start, end). The circle is cut open where
            rows are fewest: across the cut the density need not be continuous.
        frame: Coordinates of the law (``Identity()``, ``Affine()``, ``Gaussianize()``), fitted to ``x``,
            or a frame fitted elsewhere; by default what ``Auto()`` chooses, else the identity (columns of
            different units need more).
        key: Random key of whatever is left to chance: where ties are spread, clusters, splits, samples of
            a cluster's rows. ``jax.random.key(0)`` by default.
        block_rows: Rows evaluated together, at most.
        evaluation: How the law is to be evaluated; by default as suits the device.

    Raises:
        ValueError: If ``x`` is not a non-empty table of finite numbers; if ``weights``, ``groups``,
            ``bounds`` or ``periodic`` do not fit it, or the frame, fitted elsewhere, does not suit the
            latter; with ``Auto()`` also of fewer than five rows, or with a constant column.

    >>> from mcscore import Isotropic
    >>> law = mixture(np.eye(3), kernel=Isotropic(0.5))
    >>> law.dimension, law.blocks.rows.shape
    (3, (1, 3, 3))
    """
    table = joined(x, condition, weights)
    law, _ = choose_law(
        table, kernel=kernel, groups=groups, bounds=bounds, periodic=periodic,
        frame=frame, key=key, block_rows=block_rows, evaluation=evaluation,
    )  # fmt: skip
    return conditional_on_last(law, table.given) if table.given else law


def choose_law(
    table: Table,
    *,
    kernel: Kernel,
    groups: Any = None,
    bounds: Mapping[Any, Any] | None = None,
    periodic: Mapping[Any, Any] | None = None,
    frame: FrameKind | None = None,
    key: Array | None = None,
    block_rows: int = BLOCK_ROWS,
    evaluation: Evaluation | None = None,
) -> tuple[Mixture, Choice]:
    """Return the joint law of all columns of a table, and what was chosen; see ``mixture``."""
    at_least(1, block_rows=block_rows)
    evaluation = Evaluation.on(jax.local_devices()[0]) if evaluation is None else evaluation
    check_law(kernel, frame)
    if table.given and not kernel.has_density:
        raise ValueError(
            f"kernel: expected one with a density beside a condition, such as mcs.Auto(), got {kernel}"
        )
    of_type(Evaluation, "mcs.jet.Evaluation()", evaluation=evaluation)
    spread_key, kernel_key = jax.random.split(jax.random.key(0) if key is None else as_key(key))
    frames = kernel.usual_frames(table) if frame is None else (frame,)
    if not all(isinstance(f, Frame) for f in frames):  # they scale columns
        table.require_variation()
    labels = _checked_groups(groups, table)
    ends, circles = told(bounds, periodic, table)
    fitted_elsewhere = any(isinstance(f, Frame) and not isinstance(f, Identity) for f in frames)
    for fitted in frames if fitted_elsewhere else ():
        _check_fitted(fitted, table)
    if fitted_elsewhere and ends is not None:
        advice = "a frame yet to be fitted, such as mcs.Gaussianize()"
        raise ValueError(f"bounds, periodic: expected {advice}, got {frame}")
    kept, weights, copies = merged(table.values, table.weights)
    values = table.values if len(kept) == len(table.values) else table.values[kept]
    asked = [frame.spreads_ties for frame in frames]
    spread = any(kernel.spreads_ties if spreads is None else spreads for spreads in asked)
    tables = placed(
        spread_key, values, weights, spread=spread, ends=ends, circles=circles, given=table.given
    )
    if labels is not None:
        tables = [way._replace(groups=labels[kept]) for way in tables]
    chosen = kernel.choose(kernel_key, tables, frames, block_rows)
    found = chosen.table.columns
    full = np.isfinite(chosen.blocks.log_weights)
    report = Report(
        rows=len(table.values),
        columns=table.values.shape[1],
        kernel=repr(chosen.kernel),
        frame=repr(chosen.frame),
        blocks=len(full),
        padding=1 - float(full.mean()),
        copies=copies,
        tied={j: c.tied for j, c in enumerate(found) if c is not None and c.tied},
        kinds={j: c.kind for j, c in enumerate(found) if c is not None},
        names=table.columns,
        suspected=suspected(table, chosen.table.ended),
        **chosen.evidence,
    )
    fitted = chosen.table.frame(chosen.fitted)
    width, variance = moments(chosen.blocks)
    _check_resolution(table.dtype, chosen.kernel, chosen.blocks, float(width), float(variance))
    blocks, width, variance = on_device((chosen.blocks, width, variance), table.dtype)
    return Mixture(blocks, width, variance, fitted, evaluation, report, table.columns), chosen


def joined(x: Any, condition: Any, weights: Any = None) -> Table:
    """Return the table of ``x`` with the condition's columns, if any, behind.

    Raises:
        ValueError: As ``Table.of``; if ``condition`` has not a row for each of ``x``, or names no columns of
            it.
    """
    table = Table.of(x, weights)
    if condition is None:
        return table
    names = [condition] if isinstance(condition, str) else condition
    if np.ndim(names) == 1 and len(names) and all(isinstance(name, str) for name in names):
        known = column_numbers(list(names), table.values.shape[1], table.columns)
        return table.given_behind(known)
    to_frame = getattr(condition, "to_frame", None)
    if to_frame is not None and np.ndim(condition) == 1:  # a Series keeps its name
        condition = to_frame()
    one = np.asarray(condition)[:, None] if np.ndim(condition) == 1 else condition
    given = Table.of(one, name="condition")
    if len(given) != len(table.kept):
        raise ValueError(
            f"condition: expected a row for each of {len(table.kept)} of x, got {len(given)}"
        )
    return table.beside(given)


def _check_resolution(
    dtype: Any, kernel: Kernel, blocks: Blocks, width: float, variance: float
) -> None:
    """Raise ``ValueError`` unless numbers of a ``dtype`` hold the law's widths and tell its rows apart."""
    number = np.finfo(dtype)
    if 0 < width < number.eps * np.sqrt(variance):
        raise ValueError(
            f"kernel: {kernel} has a width of {width / np.sqrt(variance):.2g} times the data's deviation, "
            f"finer than {dtype} resolves; Dirac() is the empirical measure"
        )
    if 0 < np.min(blocks.variances, initial=1, where=blocks.variances > 0) < number.tiny:
        raise ValueError(
            f"x: the law spreads by {np.sqrt(variance):.2g} in its own coordinates, and the squares of its "
            f"widths underflow {dtype}; frame=mcs.Affine() standardizes the columns"
        )


def _check_fitted(frame: Any, table: Table) -> None:
    """Raise ``ValueError`` unless a frame that was fitted elsewhere has as many columns as the table."""
    d = table.values.shape[1]
    try:
        fits = np.shape(frame.forward(table.values[:1])) == (1, d)
    except (ValueError, TypeError, IndexError):
        fits = False
    if not fits:
        raise ValueError(f"frame: expected one of {d} columns, got {frame}, fitted to others")


def _checked_groups(groups: Any, table: Table) -> np.ndarray | None:
    """Return the numbers of the groups of the table's rows, (n,)."""
    if groups is None:
        return None
    labels = np.asarray(groups)
    if labels.shape != table.kept.shape:
        raise ValueError(
            f"groups: expected a label for each of {len(table.kept)} rows, got shape {labels.shape}"
        )
    numbers = np.unique(labels[table.kept], return_inverse=True)[1].reshape(-1)
    if numbers.max() == 0:
        raise ValueError("groups: expected two groups at least, got one")
    return numbers


def check_law(kernel: Any, frame: Any) -> None:
    """Raise ``ValueError`` unless a mixture can be asked for by ``kernel`` and ``frame``."""
    of_type(Kernel, "mcs.Local()", kernel=kernel)
    if frame is not None:
        of_type(FrameKind, "mcs.Affine()", frame=frame)
