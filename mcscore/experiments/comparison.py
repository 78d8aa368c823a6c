"""Two columns of results side by side, and the one rule by which a figure is better than another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

COLUMNS = {"published": "as published", "mcscore": "mcscore"}
FLOOR = "training rows"  # a reference column: what rows of the same law score
CHANCE = "by chance"  # what equal laws exceed in one of twenty comparisons


class Metric(NamedTuple):
    """One line's name and key, and how far a value is from the best."""

    name: str
    key: str
    distance: Callable[[float], float] = float


def from_half(share: float) -> float:
    """Return how bad a share is of which a half is the best: less than that is chance."""
    return max(share, 0.5)


METRICS = (
    Metric("KL per column, mean", "column_kl"),
    Metric("mean, root mean square error over columns (in deviations)", "mean_rms"),
    Metric("mean, largest error", "mean_error"),
    Metric("standard deviation, root mean square relative error", "std_rms"),
    Metric("standard deviation, largest relative error", "std_error"),
    Metric("sliced Wasserstein", "sliced_wasserstein"),
    Metric("MMD², unbiased", "mmd"),
    Metric("classifier accuracy (0.5 is best)", "classifier", from_half),
    Metric("held-out log-likelihood of the law, nats", "law_log_likelihood", lambda v: -v),
    Metric("held-out log-likelihood of the generator, nats", "log_likelihood", lambda v: -v),
    Metric("nearer to training rows (0.5: no copying)", "memorization", from_half),
    Metric("labels: classifier accuracy", "label_classifier", from_half),
    Metric("labels: nearer to training rows", "label_memorization", from_half),
)


STAGES = ("mixture", "labels", "training", "refining", "sampling", "total", "total in full size")


class Line(NamedTuple):
    """One line of the comparison: a cell per column, the better column if one is, and the references."""

    name: str
    cells: dict[str, float | None]
    best: str | None
    floor: float | None = None
    chance: float | None = None


def as_good_as_best(
    ranks: Mapping[str, float], error: float = 0.0, chance: float = -math.inf
) -> set[str]:
    """Return the name of the least rank, and the others that scatter or chance explains.

    They differ by less than two standard errors of a difference, or are within what equal laws show.

    Args:
        ranks: How far from the best possible each is.
        error: Standard error of the least rank's own figure: scatter of another must not excuse it.
        chance: Rank that equal laws exceed in one of twenty comparisons.

    >>> sorted(as_good_as_best({"a": 1.0, "b": 1.2, "c": 2.0}, error=0.1))
    ['a', 'b']
    """
    least = min(ranks.values()) + 2 * math.sqrt(2) * error
    return {name for name, rank in ranks.items() if rank <= max(least, chance)}


def table(results: Mapping[str, Any]) -> list[Line]:
    """Return the comparison line by line: metrics, then seconds."""
    lines = []
    floor = results["floor"]["metrics"]
    for name, key, distance in METRICS:
        metrics = {column: results[column]["metrics"] for column in COLUMNS}
        cells = {column: found.get(key) for column, found in metrics.items()}
        thresholds = [found.get(f"{key}_threshold") for found in (floor, *metrics.values())]
        chance = max((value for value in thresholds if value is not None), default=None)
        ranks = {column: distance(value) for column, value in cells.items() if value is not None}
        first = metrics[min(ranks, key=ranks.__getitem__)] if ranks else {}
        least = -math.inf if chance is None else distance(chance)
        best = _best(ranks, first.get(f"{key}_error", 0.0), least)
        lines.append(Line(name, cells, best, floor.get(key), chance))
    for stage in STAGES:
        cells = {column: results[column]["seconds"].get(stage) for column in COLUMNS}
        ranks = {c: v for c, v in cells.items() if v is not None and "total" in stage}
        lines.append(Line(f"seconds: {stage}", cells, _best(ranks)))
    return lines


def _best(ranks: Mapping[str, float], error: float = 0.0, chance: float = -math.inf) -> str | None:
    """Return the one column that is better; None where there is none."""
    if len(ranks) < 2:
        return None
    best, *others = as_good_as_best(ranks, error, chance)
    return None if others else best


def cell(value: float | None) -> str:
    """Return a number with three significant digits.

    >>> cell(0.012345), cell(1234.5), cell(None)
    ('0.0123', '1234', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
