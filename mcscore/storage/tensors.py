"""Named tensors and a header of texts in one safetensors file: no pickle, nothing is ever executed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mcscore.storage.files import replacing


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, Any], header: Mapping[str, str]
) -> None:
    """Write arrays and a header to ``path``, whole or not at all."""
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}
    with replacing(path) as aside:
        save_file(arrays, aside, dict(header))


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays and the header of the file at ``path``.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If it is damaged or another kind of file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: no file {path}")
    try:
        with safe_open(path, "numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except PermissionError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path: {path} is damaged or no safetensors file ({error})") from error
