"""Reading a table from a file: ``.csv`` (``.txt``, ``.tsv``, ``.gz`` too), ``.npy``, ``.npz``; no pickles."""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mcscore.storage import replacing

MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


def read(
    path: str | Path, array: str | None = None, header: bool | None = None, *, missing: bool = False
) -> tuple[np.ndarray, list[str] | None]:
    """Return the table (n, d) in a ``.npy``, ``.npz`` or ``.csv`` file, and its header if it has one.

    Of a CSV file, separator and decimal mark are found; lines that start with ``#`` are comments; a first
    column without a name that counts the rows, a DataFrame's index, is left out.

    Args:
        path: The file. Pickles in it are never opened.
        array: Name of the array in an ``.npz`` file; by default its only one, or "train".
        header: Whether a CSV file's first row are names; by default if none of its cells is a number.
        missing: Take cells of a CSV file that are empty, or NA, for NaN, instead of refusing them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, damaged, without such an array, or not all numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    text = dict.fromkeys(
        (".csv", ".tsv", ".txt"), partial(_read_csv, header=header, missing=missing)
    )
    readers = {".npy": _read_npy, ".npz": partial(_read_npz, array=array), **text}
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in readers or (path.suffix == ".gz" and suffix not in text):
        raise ValueError(
            f"{path}: expected a .csv, .tsv, .txt (or one of them .gz), .npy or .npz file"
        )
    try:
        return readers[suffix](path)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile) as error:
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


class _Dialect(NamedTuple):
    """How a CSV file is written: its separator (None: blanks), decimal mark and first row."""

    separator: str | None
    decimal: str
    first: list[str]


def _read_csv(
    path: Path, header: bool | None, missing: bool
) -> tuple[np.ndarray, list[str] | None]:
    with _opened(path) as file:
        start = [line for line in islice(file, 200) if line.strip() and line[0] != "#"]
    dialect = _dialect(start)
    named = header
    if named is None:  # "1,": a row with a gap, no header
        named = bool(start) and not any(_is_number(cell, dialect.decimal) for cell in dialect.first)
    with _opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no rows: whoever checks the table says so
        lines = (line for line in file if line.strip() and line[0] != "#")
        lines = islice(lines, int(named), None)
        if dialect.decimal == ",":
            lines = (line.replace(",", ".") for line in lines)
        try:
            how: Any = dict(converters=_number_or_nan, encoding="utf-8") if missing else {}
            table = np.loadtxt(lines, delimiter=dialect.separator, quotechar='"', ndmin=2, **how)
        except ValueError as error:
            raise ValueError(_located(str(error), dialect.first if named else None)) from error
    names = dialect.first if named else None
    if names is not None and table.size:
        if len(names) != table.shape[1]:
            raise ValueError(f"{len(names)} names for {table.shape[1]} columns")
        count = table[:, 0] - table[0, 0]
        if not names[0] and len(names) > 1 and np.array_equal(count, np.arange(len(table))):
            names, table = names[1:], table[:, 1:]  # a DataFrame's index
        names = [name or f"column {j}" for j, name in enumerate(names)]
    return table, names


def _opened(path: Path) -> Any:
    encoding = "utf-8-sig"  # without the mark of spreadsheets, no number to Python
    return (
        gzip.open(path, "rt", encoding=encoding)
        if path.suffix == ".gz"
        else path.open(encoding=encoding)
    )


def _dialect(lines: list[str]) -> _Dialect:
    """Return the dialect by which most of the ``lines`` have equally many cells, more than one."""
    best, most = _Dialect(",", ".", next(csv.reader(lines[:1]), [])), 0.9
    for separator in (",", ";", "\t", "|", None):
        text = lines if separator else [" ".join(line.split()) for line in lines]
        rows = list(csv.reader(text, delimiter=separator or " "))
        sizes = [len(row) for row in rows]
        size = max(set(sizes), key=sizes.count, default=0)
        told = sizes.count(size) / max(len(sizes), 1)
        body = [cell for row in rows[1:] or rows for cell in row]
        commas = separator != "," and sum("," in c for c in body) > sum("." in c for c in body)
        decimal = "," if commas else "."
        clean = np.mean([_is_number(cell.strip(), decimal) for cell in body]) if body else 0
        if size > 1 and told > 0.9 and told + clean > most:
            first = [cell.strip() for cell in rows[0]]
            best, most = _Dialect(separator, decimal, first), told + float(clean)
    return best


def _located(text: str, names: list[str] | None) -> str:
    """Return NumPy's message with the column's name."""
    found = re.search(r"at row (\d+), column (\d+)", text)
    if not found:
        return text
    row, column = int(found[1]), int(found[2]) - 1
    name = repr(names[column]) if names and column < len(names) else column
    return text[: found.start()] + f"in column {name}, row {row}"


def _number_or_nan(text: str) -> float:
    return float("nan") if text.strip().lower() in MISSING else float(text)


def _is_number(text: str, decimal: str = ".") -> bool:
    try:
        float(text.replace(decimal, "."))
    except ValueError:
        return False
    return True


def write(path: Path, rows: np.ndarray, names: Sequence[str] | None) -> None:
    """Write a table to a ``.npy`` or ``.csv`` file, aside and moved into place, as ``read`` reads it."""
    header = io.StringIO()
    csv.writer(header, lineterminator="").writerow(names or [])
    with replacing(path) as aside, aside.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, rows)
        else:
            lines = (",".join(map(_shortest, row)) for row in rows)
            text = "\n".join([header.getvalue(), *lines] if names else list(lines))
            file.write(f"{text}\n".encode())


def _shortest(number: Any) -> str:
    """Return the shortest text that reads as the number, to the bit."""
    return str(number).removesuffix(".0")
