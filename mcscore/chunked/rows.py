"""Rows read in chunks, of tables larger than memory: a sample of them, or all dealt at random into parts."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, on_host
from mcscore._numbers import names_of
from mcscore._validation import Table, as_key, at_least
from mcscore.datasets import read

READ = 100_000  # rows read at once of what can be sliced
MOST_PARTS = 200  # files open at once
NOTHING = "source: expected a table of rows, got none"
Source = Any  # see ``tables``


def tables(source: Source) -> Iterator[Any]:
    """Return the source's chunks, tables (m, d), one after the other.

    Args:
        source: An array that can be sliced (a memory map, one of h5py or zarr, of JAX), a DataFrame, the path
            of a ``.npy`` file or of a folder of them in the order of their names, an iterable of tables or a
            function of nothing that returns one (``lambda: pandas.read_csv(path, chunksize=100_000)``).

    Raises:
        FileNotFoundError: If there is no such file, or none in the folder.
        ValueError: If the source is none of these, entries are masked, or chunks differ in their columns.

    >>> [len(part) for part in tables([np.ones((3, 2)), np.ones((2, 2))])]
    [3, 2]
    """
    start, first = 0, None
    for part in _chunks(source):
        try:
            shape = np.shape(part)
        except ValueError:  # rows of unequal lengths
            shape = ()
        if len(shape) != 2:
            raise ValueError(
                f"source: expected tables (rows, columns), got a part of shape {shape}"
            )
        if np.ma.is_masked(part):
            raise ValueError(f"source: masked entries from row {start} on; leave such rows out")
        if shape[0] == 0:
            continue
        columns = shape[1], names_of(part)
        if columns != (first := first or columns):
            raise ValueError(
                f"source: expected columns {_told(*first)}, got {_told(*columns)} from row {start} on"
            )
        start += shape[0]
        yield part


def _told(number: int, names: list[str] | None) -> str:
    return f"{names if names else number}"


def _chunks(source: Source) -> Iterable[Any]:
    if callable(source):
        source = source()
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        found = sorted(path.glob("*.npy")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"source: no .npy files in {path}")
        if path.is_file() and path.suffix != ".npy":
            raise ValueError(
                f"source: expected .npy files, got {path}; pandas reads a CSV in chunks"
            )
        return chain.from_iterable(_chunks(read(file)[0]) for file in found)
    shape = getattr(source, "shape", None)
    if shape is not None and len(shape) == 2:
        rows = getattr(source, "iloc", source)  # of a DataFrame
        return (rows[i : i + READ] for i in range(0, len(source), READ))
    if not isinstance(source, Iterable) or shape is not None:
        told = type(source).__name__ + ("" if shape is None else f" of shape {shape}")
        raise ValueError(f"source: expected a table, or tables one after the other, got {told}")
    return source


def subsample(key: Array, source: Source, rows: int) -> Any:
    """Return ``rows`` of a table, or all if there are fewer, each equally likely, in their order.

    Read once, in chunks; which rows are drawn depends on neither the chunks nor what they hold. A law or a
    generator of a few 100,000 rows is about as good as one of more, and soon made.

    Args:
        key: Random key.
        source: A table that may be larger than memory, see ``tables``.
        rows: How many.

    Returns:
        An array (rows, d), or a DataFrame where the chunks are.

    Raises:
        ValueError: If ``rows`` is not positive; as ``tables``.

    >>> subsample(jax.random.key(0), np.arange(20.0).reshape(10, 2), 3).shape
    (3, 2)
    """
    at_least(1, rows=rows)
    random = host_generator(as_key(key))
    if isinstance(source, jax.Array) and source.ndim == 2:  # on any devices, of other processes too
        drawn = np.argsort(random.random(len(source)))[:rows]
        return on_host(source[np.sort(drawn)])
    levels, picked, most = np.zeros(0), list[Any](), 1.0
    for part in tables(source):
        frame = hasattr(part, "iloc")
        level = random.random(len(part))
        some = np.flatnonzero(level < most)
        levels = np.append(levels, level[some])
        picked.append(part.iloc[some] if frame else np.asarray(part)[some])
        if len(levels) > 2 * rows:
            levels, picked = _lowest(levels, picked, rows)
            most = levels.max()
    if not picked:
        raise ValueError(NOTHING)
    return _lowest(levels, picked, rows)[1][0]


def _lowest(levels: np.ndarray, picked: list[Any], rows: int) -> tuple[np.ndarray, list[Any]]:
    """Return the rows of the lowest levels, in their order, and these."""
    order = np.sort(np.argsort(levels)[:rows])
    if hasattr(picked[0], "iloc"):
        return levels[order], [import_module("pandas").concat(picked).iloc[order]]
    return levels[order], [np.concatenate(picked)[order]]


class Dealt(NamedTuple):
    """Rows dealt into files of float64 that vanish when they are closed, and what is known of them."""

    files: list[Any]
    sizes: list[int]
    columns: tuple[str, ...] | None
    dtype: Any
    digest: str

    def part(self, number: int) -> Table:
        """Return the table of a part, of the source's precision."""
        self.files[number].seek(0)
        rows = np.frombuffer(self.files[number].read()).reshape(self.sizes[number], -1)
        return replace(Table.of(rows, columns=self.columns, name="source"), dtype=self.dtype)


@contextmanager
def deal(key: Array, source: Source, rows: int, folder: Path) -> Iterator[Dealt]:
    """Give the rows, dealt at random into parts of at most so many, their sizes equal up to one row.

    The parts' files are in the ``folder`` as long as the block lasts. They have no names, so that none is
    left behind, not even by a process that is killed.
    """
    n = sum(len(part) for part in tables(source))
    parts = -(-n // rows)
    if n == 0:
        raise ValueError(NOTHING)
    if parts > MOST_PARTS:
        raise ValueError(
            f"rows: {rows} make {parts} parts of {n} rows, expected {MOST_PARTS} parts at most"
        )
    with ExitStack() as opened:
        files = [opened.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(parts)]
        dealt = _dealt(host_generator(key), source, files)
        if (again := sum(dealt.sizes)) != n:
            raise ValueError(f"source: {n} rows when read first, {again} when read again")
        yield dealt


def _dealt(random: np.random.Generator, source: Source, files: list[Any]) -> Dealt:
    parts, digest = len(files), hashlib.sha256()
    turns, start, sizes = np.zeros(0, int), 0, np.zeros(parts, int)
    columns, dtype = None, np.dtype(np.float32)
    for chunk in tables(source):
        try:
            table = Table.of(chunk, name="source")
        except ValueError as error:
            raise ValueError(f"{error}, of those from {start} on") from error
        columns, dtype = table.columns, np.promote_types(dtype, table.dtype)
        digest.update(table.values.tobytes())
        while len(turns) < len(table):  # every part once, in a random order
            turns = np.append(turns, random.permutation(parts))
        order = np.argsort(turns[: len(table)], kind="stable")
        counts = np.bincount(turns[: len(table)], minlength=parts)
        for file, some in zip(files, np.split(order, counts.cumsum()[:-1]), strict=True):
            file.write(table.values[some].tobytes())
        turns, start, sizes = turns[len(table) :], start + len(table), sizes + counts
    return Dealt(files, sizes.tolist(), columns, dtype, digest.hexdigest())
