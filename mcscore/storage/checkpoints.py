"""Checkpoints: finished parts of a run in one folder, each with a digest of what it holds.

A run is known by its settings, which the folder's ``run.json`` lists, and a part by its name. A part that is
damaged, cut short, or stands under another's name is named and made again; other settings are refused.
"""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from mcscore.storage.files import kept, write_text
from mcscore.storage.fingerprints import PLAIN, fingerprint
from mcscore.storage.processes import is_first, of_first, several
from mcscore.storage.tensors import read_tensors, write_tensors

PACKAGES = "jax", "jaxlib", "numpy"  # whose versions belong to a run: it goes on to the bit


class Checkpoint:
    """The finished parts of one run.

    Args:
        folder: Where they are kept; made if it is missing.
        settings: Everything on which the parts depend, by the names that users know.

    Raises:
        ValueError: If the folder belongs to a run of other settings, naming them.

    >>> import tempfile
    >>> store = Checkpoint(folder := tempfile.mkdtemp(), dict(seed=0))
    >>> store.write("first", {"x": np.arange(3)})
    >>> store.read("first")["x"].tolist(), store.read("second")
    ([0, 1, 2], None)
    >>> Checkpoint(folder, dict(seed=1))
    Traceback (most recent call last):
    ValueError: checkpoint: ... another key, data or settings (seed: 0 there, 1 here); ...
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"checkpoint: expected a folder, got the file {folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in PACKAGES}
        own = {name: _told(value) for name, value in (versions | dict(settings)).items()}
        self.run = fingerprint(own)
        found = json.loads(of_first(json.dumps(self._claimed(own)).encode()))
        other = [name for name in own | found if own.get(name) != found.get(name)]
        if other:
            named = ", ".join(_difference(name, found.get(name), own.get(name)) for name in other)
            raise ValueError(
                f"checkpoint: {folder} belongs to a run with another key, data or settings ({named}); "
                "name another folder, or remove this one"
            )

    def _claimed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the run to which the folder belongs: these, if it was nobody's."""
        if not is_first():
            return {}
        path = self.folder / "run.json"
        damaged = path.exists() and kept(path) is None
        if damaged or not path.exists():
            aside = self.folder / f".run-{secrets.token_hex(8)}.json"
            write_text(aside, json.dumps(settings, indent=1))
            try:
                if damaged:
                    os.replace(aside, path)
                else:
                    with suppress(FileExistsError):  # another run was faster
                        os.link(aside, path)
            except OSError:  # no links on this file system
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
        return kept(path) or {}

    def forget(self) -> None:
        """Let the folder be anybody's again, as long as nothing was kept in it."""
        if is_first() and not list(self.folder.rglob("*.safetensors")):
            (self.folder / "run.json").unlink(missing_ok=True)

    def path(self, part: str) -> Path:
        """Return the file of a part."""
        return self.folder / f"{part}.safetensors"

    def write(self, part: str, tensors: Mapping[str, Any]) -> None:
        """Keep a finished part; it replaces an earlier one of that name."""
        arrays = {name: np.asarray(value) for name, value in tensors.items()}
        header = dict(run=self.run, part=part, digest=fingerprint(part, arrays))
        write_tensors(self.path(part), arrays, header)

    def read(self, part: str) -> dict[str, np.ndarray] | None:
        """Return a part, or None where there is none or it has to be made again.

        Raises:
            ValueError: If the part belongs to another run.
        """
        found = self._read(part) if is_first() else None
        if not several():
            return found
        data = of_first(b"" if found is None else save(found))
        return load(data) if data else None

    def _read(self, part: str) -> dict[str, np.ndarray] | None:
        path = self.path(part)
        if not path.exists():
            return None
        try:
            tensors, header = read_tensors(path)
        except ValueError as error:
            return self._again(f"{error}")
        if header.get("run") != self.run:  # first: what belongs to others is not overwritten
            raise ValueError(
                f"checkpoint: {path} belongs to a run with another key, data or settings; "
                "name another folder, or remove this one"
            )
        if header.get("part") != part or header.get("digest") != fingerprint(part, tensors):
            return self._again(f"{path} does not hold what was written as {part!r}")
        return tensors

    def write_tree(self, part: str, tree: Any) -> None:
        """Keep the leaves of a tree as a part."""
        self.write(part, {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))})

    def read_tree(self, part: str, like: Any) -> Any:
        """Return a part as a tree of the form of ``like``, its leaves in NumPy; None as ``read``."""
        found = self.read(part)
        if found is None:
            return None
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in sorted(found)])

    @staticmethod
    def _again(reason: str) -> None:
        warnings.warn(f"checkpoint: {reason}; it is made again", RuntimeWarning, stacklevel=5)


def _told(value: Any) -> dict[str, str | None]:
    """Return a setting's fingerprint, and the setting itself where it is short enough to be read."""
    text = repr(value)
    short = len(text) <= 80 and (isinstance(value, PLAIN) or " at 0x" not in text)
    return dict(digest=fingerprint(value), value=text if short else None)


def _difference(name: str, there: Any, here: Any) -> str:
    """Return what a message says of a setting that is another."""
    values = [told and told.get("value") for told in (there, here)]
    if there is None or here is None or None in values or values[0] == values[1]:
        return name
    return f"{name}: {values[0]} there, {values[1]} here"
