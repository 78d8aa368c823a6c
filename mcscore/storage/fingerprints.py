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

PLAIN = (type(None), type(...), bool, int, float, complex, str, bytes, Path)


def fingerprint(*parts: Any) -> str:
    """Return a digest of ``parts``: arrays by their bytes, keys by their data, values by their fields.

    Functions count by their name, code, and what they close over; so do the methods of a value's class.

    Raises:
        TypeError: If a part has no fields and is none of the known types: its ``repr`` may hide numbers.

    >>> fingerprint(np.array(0.1)) == fingerprint(np.array(0.1 + 1e-9))
    False
    >>> fingerprint({"a": (1, None)}) == fingerprint({"a": (1, None)})
    True
    """
    reading = _Reading()
    reading.add(*parts)
    return reading.digest.hexdigest()


class _Reading:
    """A digest that grows; functions that are being read, which may close over themselves, are known."""

    def __init__(self) -> None:
        self.digest, self.functions = hashlib.sha256(), set[int]()

    def add(self, *parts: Any) -> None:
        for part in parts:
            self._add(part)

    def _add(self, part: Any) -> None:
        is_array = isinstance(part, np.ndarray | np.generic | jax.Array)  # of either library
        kind = "array" if is_array else f"{type(part).__module__}.{type(part).__qualname__}"
        self.digest.update(f"<{kind}>".encode())
        if isinstance(part, PLAIN):
            self.digest.update(repr(part).encode())
        elif isinstance(part, type):
            self.digest.update(f"{part.__module__}.{part.__qualname__}".encode())
        elif isinstance(part, jax.Array) and jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
            self.add(str(part.dtype), np.asarray(jax.random.key_data(part)))
        elif is_array and np.asarray(part).dtype != object:
            array = np.asarray(part)
            self.digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        elif isinstance(part, tuple | list):
            self.add(len(part), *part)
        elif isinstance(part, dict):
            self.add(*sorted(part.items(), key=lambda item: repr(item[0])))
        elif dataclasses.is_dataclass(part):
            self.add(*((f.name, getattr(part, f.name)) for f in dataclasses.fields(part)))
            self._methods(type(part))
        elif isinstance(part, partial):
            self.add(part.func, part.args, part.keywords)
        elif isinstance(part, types.CodeType):
            self.add(part.co_code, part.co_names, part.co_consts)
        elif isinstance(part, types.MethodType):
            self.add(part.__func__, part.__self__)
        elif isinstance(part, types.FunctionType):
            self._function(part)
        elif callable(part) and hasattr(part, "__wrapped__"):  # jitted and other wrappers
            self.add(part.__wrapped__)
        elif callable(part) and hasattr(part, "__qualname__"):
            self.add(str(part.__module__), part.__qualname__)
        else:
            raise TypeError(
                f"fingerprint: expected arrays, numbers and dataclasses, got {type(part)}"
            )

    def _function(self, function: types.FunctionType) -> None:
        self.add(function.__module__, function.__qualname__)
        if id(function) in self.functions:
            return
        self.functions.add(id(function))
        self.add(function.__code__, function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not yet filled
                self.add(None)

    def _methods(self, kind: type) -> None:
        """Read what the author of a class wrote; of what a decorator made of it, as much as can be read."""
        for base in kind.__mro__:
            for name, member in vars(base).items():
                if isinstance(member, types.FunctionType) and not name.startswith("__"):
                    try:
                        self.add(member)
                    except TypeError:
                        self.add(name)


def digest_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
