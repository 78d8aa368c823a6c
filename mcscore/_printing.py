"""Tables as aligned text: one printer for all of them (rich)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Return ``rows`` under their ``header`` (none if all empty): ``left`` columns flush left, others right.

    >>> print(text_table(["data", "rows"], [["wine", "178"], ["iris", "150"]]))
    data  rows
    ----------
    wine   178
    iris   150
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(header))
    for index, title in enumerate(header):
        table.add_column(Text(title), justify="left" if index < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=10_000, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    if any(header):
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


class Told:
    """Base of what ``print`` and notebooks show in words; at a prompt its ``repr`` stays."""

    def told(self) -> Mapping[str, str]:
        """Return what there is to tell, label by label; nothing where only the ``repr`` knows."""
        raise NotImplementedError

    def __str__(self) -> str:
        lines = self.told()
        return text_table(["", ""], lines.items(), left=2) if lines else repr(self)

    def _repr_html_(self) -> str | None:
        cell = '<td style="text-align: left">{}</td>'
        rows = (map(cell.format, map(escape, line)) for line in self.told().items())
        body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        return f"<table>{body}</table>" if body else None
