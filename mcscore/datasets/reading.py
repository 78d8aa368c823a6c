"""Reading a table from a file: ``.csv``, ``.npy`` or ``.npz``; pickles are never opened."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np


def read(path: Path, array: str | None = None) -> tuple[np.ndarray, list[str] | None]:
    """Return the table (n, d) in a ``.npy``, ``.npz`` or ``.csv`` file, and its header if it has one.

    Args:
        path: The file. Pickles in it are never opened.
        array: Name of the array in an ``.npz`` file; by default its only one, or "train".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, damaged, without such an array, or not all numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    readers = {".npy": _read_npy, ".npz": partial(_read_npz, array=array), ".csv": _read_csv}
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a .csv, .npy or .npz file")
    try:
        return readers[path.suffix](path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable table ({error})") from error


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    return np.load(path, mmap_mode="r", allow_pickle=False), None


def _read_npz(path: Path, array: str | None) -> tuple[np.ndarray, None]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        name = array or (names[0] if len(names) == 1 else "train")
        if name not in names:
            raise ValueError(f"expected an array of {names}, got {name!r}")
        return arrays[name], None


def _read_csv(path: Path) -> tuple[np.ndarray, list[str] | None]:
    encoding = "utf-8-sig"  # without the mark of spreadsheets, no number to Python
    with path.open(encoding=encoding) as file:
        header = file.readline().strip().split(",")
    named = not any(_is_number(cell) for cell in header)  # "1,": a row with a gap, no header
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no rows: whoever checks the table says so
        table = np.loadtxt(path, delimiter=",", skiprows=int(named), ndmin=2, encoding=encoding)
    return table, header if named else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
