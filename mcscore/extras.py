"""Packages that only some calls need: what to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(what: str, package: str, extra: str) -> Iterator[None]:
    """Let a failed import in the block say that ``what`` needs ``package``, and which extra brings it."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs {package}: pip install mcscore[{extra}]") from error


def check_all(what: str) -> None:
    """Raise ``ImportError`` unless scikit-learn and matplotlib are there, before ``what`` works for hours."""
    with needed(what, "scikit-learn and matplotlib", "data,plot"):
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
