"""The report of a law: what was chosen, by which evidence, and what a user should know of it."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from mcscore._printing import Told


class Trial(NamedTuple):
    """One point of the curve: held-out log-likelihood per row, in nats and the user's units.

    Of ``x`` given the condition, where there is one; ``condition_h`` is None where it is ``h``. With
    ``by_condition`` it is conditions that were clustered.
    """

    frame: str
    clusters: int
    partitions: int
    h: float
    log_likelihood: float
    condition_h: float | None = None
    by_condition: bool = False


@dataclass(frozen=True)
class Report(Told):
    """What a user should know of a law before trusting it; ``str`` and ``to_json`` tell it.

    Attributes:
        rows: Rows of positive weight.
        columns: Number of columns.
        kernel: The kernel, chosen or given.
        frame: The frame, chosen or given.
        blocks: Blocks stored, each padded to the longest.
        padding: Share of the storage that is padding.
        log_likelihood: Held-out, mean in nats per row and the user's units (``Auto`` only).
        memorization: Share of draws from the training part's law nearer to a training row than to any
            of as many held-out rows, columns standardized; 0.5 means no copying (``Auto`` only).
        tied: Share of tied rows in columns where values repeat (integers, atoms).
        copies: Share of rows that equal another one; they are merged into weights.
        kinds: What the columns are that are not continuous: of levels, in steps, with atoms.
        suspected: Ends at which columns seem to stop, or periods, as ``mixture`` takes them.
        names: The columns' names, if they have any.
        curve: Every trial of ``Auto``.
    """

    rows: int
    columns: int
    kernel: str
    frame: str
    blocks: int
    padding: float
    log_likelihood: float | None = None
    memorization: float | None = None
    tied: dict[int, float] = field(default_factory=dict, repr=False)
    copies: float = 0.0
    kinds: dict[int, str] = field(default_factory=dict, repr=False)
    suspected: dict[int, Any] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] | None = field(default=None, repr=False)
    curve: list[Trial] = field(default_factory=list, repr=False)

    @property
    def memorisation(self) -> float | None:
        """``memorization``, by its name in version 0.1."""
        warnings.warn("memorisation is now memorization", DeprecationWarning, stacklevel=2)
        return self.memorization

    def to_json(self) -> str:
        """Return everything as JSON."""
        plain = asdict(self) | {"curve": [trial._asdict() for trial in self.curve]}
        return json.dumps(plain, indent=1)

    def _named(self, j: int) -> int | str:
        return j if self.names is None else self.names[j]

    def told(self) -> dict[str, str]:
        """Return the lines of ``print``."""
        lines = {
            "rows x columns": f"{self.rows} x {self.columns}",
            "kernel": self.kernel,
            "frame": self.frame,
            "stored blocks": f"{self.blocks} ({self.padding:.0%} padding)",
            "held-out log-likelihood": _number(self.log_likelihood, "nats"),
            "nearer to training rows": _number(self.memorization, "(0.5: no copying)"),
            "rows with a copy": f"{self.copies:.1%}",
            "not continuous": ", ".join(
                f"{self._named(j)} ({kind})" for j, kind in self.kinds.items()
            )
            or "none",
        }
        for option, kind in (("bounds", tuple), ("periodic", float | int)):
            hints = {j: hint for j, hint in self.suspected.items() if isinstance(hint, kind)}
            if hints:
                told = ", ".join(f"{self._named(j)!r}: {_hint(hint)}" for j, hint in hints.items())
                lines[f"perhaps {option}="] = f"{{{told}}}"
        return lines

    __repr__ = Told.__str__  # a mixture's shows the fields instead, those with repr=False left out


def _hint(hint: Any) -> str:
    if isinstance(hint, tuple):
        return f"({', '.join('None' if end is None else f'{end:.4g}' for end in hint)})"
    return f"{hint:.5g}"


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.4g} {unit}"
