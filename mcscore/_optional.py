"""Packages that only some calls need: what to install where one is missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(what: str, package: str, extra: str) -> Iterator[None]:
    """Let a failed import in the block say that ``what`` needs ``package``, and which extra brings it."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {package}: pip install mcscore[{extra}]") from error


def check_experiments(what: str) -> None:
    """Raise ``ImportError`` unless everything is there that ``what`` needs at its end, hours later."""
    with needed(what, "scikit-learn, matplotlib and Jinja2", "data,plot"):
        for package in ("jinja2", "matplotlib", "sklearn"):
            importlib.import_module(package)
