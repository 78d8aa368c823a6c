"""Fingerprints: short digests of everything that a result depends on, by value and not by ``repr``."""

from __future__ import annotations

import dataclasses
import hashlib
import types
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(*parts: Any) -> str:
    """Return a digest of ``parts``: arrays by their bytes, keys by their data, values by their fields.

    Functions count by their name, code, and what they close over.

    Raises:
        TypeError: If a part has no fields and is none of the known types: its ``repr`` may hide numbers.

    >>> fingerprint(np.array(0.1)) == fingerprint(np.array(0.1 + 1e-9))
    False
    >>> fingerprint({"a": (1, None)}) == fingerprint({"a": (1, None)})
    True
    """
    digest = hashlib.sha256()
    _feed(digest, parts)
    return digest.hexdigest()


def _feed(digest: Any, part: Any) -> None:
    def add(*items: Any) -> None:
        for item in items:
            _feed(digest, item)

    is_array = isinstance(part, np.ndarray | np.generic | jax.Array)  # of either library
    kind = "array" if is_array else f"{type(part).__module__}.{type(part).__qualname__}"
    digest.update(f"<{kind}>".encode())
    if part is None or isinstance(part, bool | int | float | complex | str | bytes | Path):
        digest.update(repr(part).encode())
    elif isinstance(part, type):
        digest.update(f"{part.__module__}.{part.__qualname__}".encode())
    elif isinstance(part, jax.Array) and jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
        add(str(part.dtype), np.asarray(jax.random.key_data(part)))
    elif is_array:
        array = np.asarray(part)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    elif isinstance(part, tuple | list):
        digest.update(str(len(part)).encode())
        add(*part)
    elif isinstance(part, dict):
        add(sorted(part), *(part[name] for name in sorted(part)))
    elif dataclasses.is_dataclass(part):
        add(*((field.name, getattr(part, field.name)) for field in dataclasses.fields(part)))
    elif isinstance(part, partial):
        add(part.func, part.args, part.keywords)
    elif isinstance(part, types.CodeType):
        add(part.co_code, part.co_names, part.co_consts)
    elif isinstance(part, types.FunctionType):
        cells = [cell.cell_contents for cell in part.__closure__ or ()]
        add(part.__module__, part.__qualname__, part.__code__, part.__defaults__, cells)
    elif callable(part) and hasattr(part, "__wrapped__"):  # jitted and other wrappers
        add(part.__wrapped__)
    elif callable(part) and hasattr(part, "__qualname__"):
        add(str(part.__module__), part.__qualname__)
    else:
        raise TypeError(f"fingerprint: expected arrays, numbers and dataclasses, got {type(part)}")


def digest_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
