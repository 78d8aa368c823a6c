"""Checkpoints: finished parts of a run in one folder, each with a digest of what it holds.

A run is known by its fingerprint and a part by its name. A part that is damaged, cut short, or stands
under another's name is named and made again; a part of another run is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mcscore.storage.fingerprints import fingerprint
from mcscore.storage.tensors import read_tensors, write_tensors


class Checkpoint:
    """The finished parts of one run.

    Args:
        folder: Where they are kept; made if it is missing.
        run: Fingerprint of everything on which the parts depend.

    >>> import tempfile
    >>> store = Checkpoint(tempfile.mkdtemp(), run="a")
    >>> store.write("first", {"x": np.arange(3)})
    >>> store.read("first")["x"].tolist(), store.read("second")
    ([0, 1, 2], None)
    """

    def __init__(self, folder: str | os.PathLike, run: str):
        self.folder, self.run = Path(folder), run
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"checkpoint: expected a folder, got the file {folder}")
        self.folder.mkdir(parents=True, exist_ok=True)

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

    @staticmethod
    def _again(reason: str) -> None:
        warnings.warn(f"checkpoint: {reason}; it is made again", RuntimeWarning, stacklevel=4)
