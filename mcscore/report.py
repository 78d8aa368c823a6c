"""The report of a law: what was chosen, by which evidence, and what a user should know of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from mcscore.selection import Trial


@dataclass(frozen=True, eq=False)
class Report:
    """What a user should know of a law before trusting it; ``str`` and ``to_json`` tell it.

    Attributes:
        rows: Rows of positive weight.
        columns: Number of columns.
        kernel: The kernel, chosen or given.
        frame: The frame, chosen or given.
        blocks: Blocks stored, each padded to the longest.
        padding: Share of the storage that is padding.
        log_likelihood: Held-out, mean in nats per row and the user's units (``Auto`` only).
        memorisation: Share of draws from the training part's law nearer to a training row than to any
            of as many held-out rows, columns standardised; 0.5 means no copying (``Auto`` only).
        effective_sample_size: Median number of components that share a draw's density at ``t = 0``.
        tied: Share of tied rows in columns where values repeat (integers, atoms).
        curve: Every trial of ``Auto``.
    """

    rows: int
    columns: int
    kernel: str
    frame: str
    blocks: int
    padding: float
    log_likelihood: float | None = None
    memorisation: float | None = None
    effective_sample_size: float | None = None
    tied: dict[int, float] = field(default_factory=dict, repr=False)
    curve: list[Trial] = field(default_factory=list, repr=False)

    # As part of a mixture it must not tell mixtures of equal shapes apart, or each would recompile.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report)

    def __hash__(self) -> int:
        return 0

    def to_json(self) -> str:
        """Return everything as JSON."""
        plain = asdict(self) | {"curve": [trial._asdict() for trial in self.curve]}
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        lines = {
            "rows x columns": f"{self.rows} x {self.columns}",
            "kernel": self.kernel,
            "frame": self.frame,
            "stored blocks": f"{self.blocks} ({self.padding:.0%} padding)",
            "held-out log-likelihood": _number(self.log_likelihood, "nats"),
            "nearer to training rows": _number(self.memorisation, "(0.5: no copying)"),
            "effective sample size": _number(self.effective_sample_size, "components"),
            "columns with ties": ", ".join(f"{j} ({s:.0%})" for j, s in self.tied.items())
            or "none",
        }
        width = max(map(len, lines))
        return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())

    __repr__ = __str__  # a mixture's shows the fields instead, those with repr=False left out


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.3g} {unit}"
