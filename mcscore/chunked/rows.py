"""Rows read in chunks, of tables larger than memory: a sample of them, or all dealt at random into parts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from mcscore._arrays import host_generator, on_host
from mcscore._validation import Table, as_key, at_least
from mcscore.datasets import read

READ = 100_000  # rows read at once of what can be sliced
Source = Any  # see ``tables``


def tables(source: Source) -> Iterator[Any]:
    """Return the source's chunks, tables (m, d), one after the other.

    Args:
        source: An array that can be sliced (a memory map, one of h5py or zarr, of JAX), the path of a
            ``.npy``, ``.npz`` or ``.csv`` file or of a folder of ``.npy`` files in the order of their names,
            an iterable of tables or a function of nothing that returns one (``lambda:
            pandas.read_csv(path, chunksize=100_000)``).

    >>> [len(part) for part in tables([np.ones((3, 2)), np.ones((2, 2))])]
    [3, 2]
    """
    if callable(source):
        source = source()
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        found = sorted(path.glob("*.npy")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"source: no .npy files in {path}")
        return chain.from_iterable(tables(read(file)[0]) for file in found)
    if len(getattr(source, "shape", ())) == 2:
        rows = getattr(source, "iloc", source)  # of a DataFrame
        return (rows[i : i + READ] for i in range(0, len(source), READ))
    if not isinstance(source, Iterable) or hasattr(source, "shape"):
        raise ValueError(f"source: expected tables of rows, got {type(source).__name__}")
    return iter(source)


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
        ValueError: If ``rows`` is not positive, or the source is no table.

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
        raise ValueError("source: expected a table of rows, got none")
    return _lowest(levels, picked, rows)[1][0]


def _lowest(levels: np.ndarray, picked: list[Any], rows: int) -> tuple[np.ndarray, list[Any]]:
    """Return the rows of the lowest levels, in their order, and these."""
    order = np.sort(np.argsort(levels)[:rows])
    if hasattr(picked[0], "iloc"):
        return levels[order], [import_module("pandas").concat(picked).iloc[order]]
    return levels[order], [np.concatenate(picked)[order]]


class Dealt(NamedTuple):
    """Rows dealt into files of raw numbers, and what is known of them."""

    folder: Path
    sizes: list[int]
    dtype: Any
    d: int
    columns: tuple[str, ...] | None
    digest: str

    def part(self, number: int) -> Table:
        """Return the table of a part."""
        rows = np.fromfile(self.folder / str(number), self.dtype).reshape(-1, self.d)
        return Table.of(rows, columns=self.columns, name="source")


def deal(key: Array, source: Source, rows: int, folder: Path) -> Dealt:
    """Deal the rows at random into parts of at most so many, their sizes equal up to one row."""
    n = sum(len(part) for part in tables(source))
    parts, random, digest = -(-n // rows), host_generator(key), hashlib.sha256()
    turns, start, first = np.zeros(0, int), 0, None
    with ExitStack() as opened:
        files = [opened.enter_context((folder / str(i)).open("wb")) for i in range(parts)]
        for chunk in tables(source):
            try:
                table = Table.of(chunk, name="source")
            except ValueError as error:
                raise ValueError(f"{error}, of those from {start} on") from error
            first = first or table
            if (table.values.shape[1], table.columns) != (first.values.shape[1], first.columns):
                raise ValueError(f"source: other columns from row {start} on than before")
            values = table.values.astype(first.dtype)
            digest.update(values.tobytes())
            while len(turns) < len(values):  # every part once, in a random order
                turns = np.append(turns, random.permutation(parts))
            order = np.argsort(turns[: len(values)], kind="stable")
            ends = np.bincount(turns[: len(values)], minlength=parts).cumsum()
            for file, some in zip(files, np.split(order, ends[:-1]), strict=True):
                values[some].tofile(file)
            turns, start = turns[len(values) :], start + len(values)
    if first is None or start != n:
        raise ValueError(f"source: {n} rows when read first, {start} when read again")
    d, dtype = first.values.shape[1], first.dtype
    sizes = [
        p.stat().st_size // (d * dtype.itemsize) for p in (folder / str(i) for i in range(parts))
    ]
    return Dealt(folder, sizes, dtype, d, first.columns, digest.hexdigest())
