"""Two things that the reference shows beside docstrings: their examples as code, the fields of named tuples.

An extension of griffe, see mkdocs.yml.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


class Doctests(griffe.Extension):
    """Fence every block that starts with ``>>>`` and ends with an empty line; list fields."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Name the fields of a named tuple whose docstring does not."""
        if not cls.docstring or "NamedTuple" not in map(str, cls.bases):
            return
        fields = [
            f"`{name}` (`{attribute.annotation}`)"
            for name, attribute in cls.attributes.items()
            if attribute.annotation is not None
        ]
        if "Attributes:" not in cls.docstring.value and fields:
            cls.docstring.value += f"\n\nFields: {', '.join(fields)}."
