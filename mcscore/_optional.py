"""Packages that only some calls need: what to install where one is missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def needed(what: str, packages: str, extra: str) -> Iterator[None]:
    """Let a failed import in the block say which extra ``what`` needs, and which packages those are."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what} needs the extra [{extra}]: pip install {packages}") from error


def as_dataframe(rows: Any, columns: Sequence[str] | None) -> Any:
    """Return ``rows`` (n, d) as a pandas DataFrame, its columns named if they have names."""
    with needed("as_frame", "pandas", "data"):
        import pandas as pd
    return pd.DataFrame(np.asarray(rows), columns=None if columns is None else list(columns))


def check_experiments(what: str) -> None:
    """Raise ``ImportError`` unless everything is there that ``what`` needs at its end, hours later."""
    with needed(what, "scikit-learn matplotlib jinja2", "data,plot"):
        for package in ("jinja2", "matplotlib", "sklearn"):
            importlib.import_module(package)
