"""Two columns of results side by side: as aligned text, and as one self-contained page."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mcscore.files import write_text

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
    Metric("nearer to training rows (0.5: no copying)", "memorisation", from_half),
    Metric("labels: classifier accuracy", "label_classifier", from_half),
    Metric("labels: nearer to training rows", "label_memorisation", from_half),
)


STAGES = ("mixture", "labels", "training", "refining", "sampling", "total", "total in full size")


class Line(NamedTuple):
    """One line of the comparison: a cell per column, the better column if one is, and the references."""

    name: str
    cells: dict[str, float | None]
    best: str | None
    floor: float | None = None
    chance: float | None = None


def table(results: Mapping[str, Any]) -> list[Line]:
    """Return the comparison line by line: metrics, then seconds.

    What equal laws show by chance (``*_threshold``) is as good as can be. Two metrics are equal, too, if they
    differ by less than two standard errors of a difference with the better one's own error over sets of
    draws: scatter must not excuse the other.
    """
    lines = []
    floor = results["floor"]["metrics"]
    for name, key, distance in METRICS:
        metrics = {column: results[column]["metrics"] for column in COLUMNS}
        cells = {column: found.get(key) for column, found in metrics.items()}
        thresholds = [found.get(f"{key}_threshold") for found in (floor, *metrics.values())]
        chance = max((value for value in thresholds if value is not None), default=None)
        least = -math.inf if chance is None else distance(chance)
        known = {c: max(distance(v), least) for c, v in cells.items() if v is not None}
        first = metrics[min(known, key=known.__getitem__)] if known else {}
        best = _best(known, 2 * math.sqrt(2) * first.get(f"{key}_error", 0.0))
        lines.append(Line(name, cells, best, floor.get(key), chance))
    for stage in STAGES:
        cells = {column: results[column]["seconds"].get(stage) for column in COLUMNS}
        known = {c: v for c, v in cells.items() if v is not None and "total" in stage}
        lines.append(Line(f"seconds: {stage}", cells, _best(known)))
    return lines


def _best(ranks: Mapping[str, float], noise: float = 0.0) -> str | None:
    """Return the column of least rank; None where noise explains the difference."""
    if len(ranks) < 2 or max(ranks.values()) - min(ranks.values()) <= noise:
        return None
    return min(ranks, key=lambda name: ranks[name])


def cell(value: float | None) -> str:
    """Return a number with three significant digits.

    >>> cell(0.012345), cell(1234.5), cell(None)
    ('0.0123', '1234', '-')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_text(results: Mapping[str, Any]) -> str:
    """Return the comparison as aligned text; the better cell of a line carries a star."""
    lines = table(results)
    width = max(len(line.name) for line in lines)
    rows = [" " * width + "".join(f"{title:>16}" for title in (*COLUMNS.values(), FLOOR, CHANCE))]
    for name, cells, best, *references in lines:
        marked = [f"{cell(v)}{'*' if c == best else ' '}" for c, v in cells.items()]
        marked += ["" if value is None else f"{cell(value)} " for value in references]
        rows.append(f"{name:<{width}}" + "".join(f"{text:>16}" for text in marked))
    return "\n".join(rows)


STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { margin-top: 2.5rem; border-top: 1px solid #8885; padding-top: 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #8883 }
td:first-child, th:first-child { text-align: left } td.best { font-weight: 700 } td.floor { opacity: .6 }
.wide { overflow-x: auto } img { max-width: 100%; height: auto; background: #fff }
p.note { opacity: .75; font-size: .9rem }
"""


def write_report(out: Path, runs: Mapping[str, Mapping[str, Any]], about: str) -> Path:
    """Write ``report.html``: every run's table and figures in one file that needs no other."""
    parts = [f"<h1>The paper's experiment, twice</h1><p>{html.escape(about)}</p>"]
    for name, results in runs.items():
        changed = results["published"]["reduced"]
        note = f"As published, but {changed}." if changed else "As published, in full."
        kernel = results["mcscore"]["notes"]["kernel"]
        parts.append(f"<h2>{html.escape(name)}</h2>{_html_table(results)}")
        parts.append(f"<p class=note>{html.escape(note)} mcscore's law: {html.escape(kernel)}.</p>")
        for title, figure in (
            ("Pairs of columns", "pairs"),
            ("Marginals", "marginals"),
            ("KL per column", "kl"),
        ):
            data = base64.b64encode((out / name / f"{figure}.png").read_bytes()).decode()
            source = f"data:image/png;base64,{data}"
            parts.append(
                f'<h3>{title}</h3><img alt="{title} of {html.escape(name)}" src="{source}">'
            )
    path = out / "report.html"
    head = f"<meta charset=utf-8><title>mcscore: {html.escape(', '.join(runs))}</title>"
    head += '<meta name=viewport content="width=device-width">'
    body = "".join(parts)
    page = f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head>"
    write_text(path, f"{page}<body>{body}</body></html>\n")
    return path


def _html_table(results: Mapping[str, Any]) -> str:
    titles = (*COLUMNS.values(), FLOOR, CHANCE)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    rows = []
    for name, cells, best, *references in table(results):
        tds = "".join(
            f"<td{' class=best' if column == best else ''}>{cell(value)}</td>"
            for column, value in cells.items()
        )
        for value in references:
            tds += f"<td class=floor>{'' if value is None else cell(value)}</td>"
        rows.append(f"<tr><td>{html.escape(name)}</td>{tds}</tr>")
    return f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
