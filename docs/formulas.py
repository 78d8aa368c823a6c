"""Typeset the formulas of a page as MathML, which browsers show without a script: a hook of mkdocs."""

import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w`])\$([^$\n`]+?)\$(?!\w)([,.:;)]*)", re.DOTALL)
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with its ``$...$`` and ``$$...$$`` replaced, except in code."""
    parts = CODE.split(markdown)
    parts[::2] = [FORMULA.sub(_typeset, part) for part in parts[::2]]
    return "".join(parts)


def _typeset(found: re.Match[str]) -> str:
    block, inline, mark = found.groups()
    formula = convert(block or inline, display="block" if block else "inline")
    formula = formula.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.2em"/>')
    if block:
        return f'\n<div class="formula">{formula}</div>\n'
    kept = f'<span class="formula">{formula}{mark}</span>'  # else a paragraph
    return kept.replace("|", "&#x7C;")  # else a table's column
