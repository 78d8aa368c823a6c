"""The comparison as people read it: aligned text, and one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from mcscore._printing import text_table
from mcscore.experiments.comparison import CHANCE, COLUMNS, FLOOR, cell, table
from mcscore.storage import write_text

TITLES = (*COLUMNS.values(), FLOOR, CHANCE)
FIGURES = {"pairs": "Pairs of columns", "marginals": "Marginals", "kl": "KL per column"}


def as_text(results: Mapping[str, Any]) -> str:
    """Return the comparison as aligned text; the better cell of a line carries a star."""
    rows = []
    for line in table(results):
        cells = [f"{cell(v)}{'*' if c == line.best else ' '}" for c, v in line.cells.items()]
        cells += ["" if v is None else f"{cell(v)} " for v in (line.floor, line.chance)]
        rows.append([line.name, *cells])
    return text_table(["", *(f"{title} " for title in TITLES)], rows)


def write_report(out: Path, runs: Mapping[str, Mapping[str, Any]], about: str) -> Path:
    """Write ``report.html``: every run's table and figures in one file that needs no other."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    page = files("mcscore.experiments").joinpath("report.html").read_text(encoding="utf-8")
    shown = [
        dict(
            name=name,
            lines=table(results),
            changed=results["published"]["reduced"],
            kernel=results["mcscore"]["notes"]["kernel"],
            figures={title: _embedded(out / name / f"{f}.png") for f, title in FIGURES.items()},
        )
        for name, results in runs.items()
    ]
    text = environment.from_string(page).render(runs=shown, about=about, titles=TITLES)
    write_text(out / "report.html", text)
    return out / "report.html"


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
