"""The tables of density estimation: POWER, GAS, HEPMASS, MINIBOONE (UCI) and BSDS300 (Berkeley).

Read from the files as their owners ship them, prepared as in the MAF paper (Papamakarios, Pavlakou
and Murray, arXiv 1705.07057) and its released code, whose rules are repeated here, odd ones included:

    POWER      minutes with gaps dropped, seven measurements -> six columns (global active power,
               voltage, three sub-meterings, minute of the day), shuffled, uniform noise of a step
    GAS        a quarter of ethylene_CO; of columns correlated above 0.98 the first goes, till none are
    HEPMASS    signal of the first tenth of ``1000_train`` and ``1000_test``
    MINIBOONE  signal without the rows whose first column is below -100
    BSDS300    8 x 8 gray patches, noise of one level, mean subtracted, last pixel dropped

HEPMASS and MINIBOONE lose the columns whose smallest value occurs more than five times. What the
released code leaves open is drawn with seed 42: GAS's quarter, POWER's noise on the minute, BSDS300's
positions; rows are then not the published ones, their counts and columns are. Archives are read in
place: nothing is ever unpacked under a name that an archive chose.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from mcscore._optional import needed

MOST_NESTED = 2 << 30  # bytes of an archive in an archive, which is unpacked to memory
Opened = io.BufferedIOBase


class Splits(NamedTuple):
    """Rows to train on, to validate on and to test on, each (rows, d)."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Source:
    """Where a table comes from and what it is once prepared.

    Attributes:
        url: The owner's address.
        archive: Name of the file there.
        rows: Published numbers of training, validation and test rows.
        columns: Published number of columns.
        prepare: From an opener of members to the three parts.
    """

    url: str
    archive: str
    rows: tuple[int, int, int]
    columns: int
    prepare: Callable[[Callable[[str], Opened]], Splits]


def uci(name: str, root: str | Path, *, complete: bool = True) -> Splits:
    """Return a table of the density-estimation benchmark from its owner's files in ``root``.

    The archive of ``fetch`` is found there, or the file in it, unpacked or compressed by gzip.

    Args:
        name: "power", "gas", "hepmass", "miniboone" or "bsds300".
        root: Folder that holds the file.
        complete: Raise unless rows and columns are the published ones; False to read a part.

    Returns:
        Float32 parts, standardized as the MAF paper does (BSDS300 is not).

    Raises:
        ValueError: If ``name`` is unknown, a file is broken, or counts differ from the published.
        FileNotFoundError: If ``root`` has neither the archive nor its file.
    """
    source = source_of(name)
    try:
        splits = source.prepare(lambda member: _open(Path(root), source, member))
    except (EOFError, OSError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{name}: {root} holds a broken file ({error})") from error
    rows, columns = tuple(len(part) for part in splits), splits.train.shape[1]
    if complete and (rows, columns) != (source.rows, source.columns):
        raise ValueError(
            f"{name}: expected {source.rows} rows of {source.columns} columns as published, got "
            f"{rows} of {columns}; complete=False takes what there is"
        )
    return Splits(*(np.asarray(part, np.float32) for part in splits))


def source_of(name: str) -> Source:
    """Return where the table ``name`` comes from; ``ValueError`` names those that are known."""
    if name not in SOURCES:
        raise ValueError(f"name: expected one of {sorted(SOURCES)}, got {name!r}")
    return SOURCES[name]


# --- files and archives --------------------------------------------------------------------------


def _open(root: Path, source: Source, member: str) -> Opened:
    """Open a member by its own name, wherever it is: loose, gzipped, or in an archive of ``root``."""
    for path in (root / member, root / f"{member}.gz"):
        if path.is_file():
            return gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb")
    path = root / source.archive
    if not path.is_file():
        raise FileNotFoundError(
            f"{root}: expected {member} or {source.archive}; see datasets.fetch"
        )
    found = _open_zip(path, member)
    if found is None:
        raise ValueError(f"{path}: expected a member {member}, found none")
    return found


def _open_zip(file: Path | io.BytesIO, member: str, nested: bool = True) -> Opened | None:
    """Open a member of a zip file, of a zip file within it, or its gzipped form."""
    archive = zipfile.ZipFile(file)
    for item in archive.infolist():
        base = item.filename.replace("\\", "/").rsplit("/", 1)[-1]
        if item.flag_bits & 1:
            raise zipfile.BadZipFile(f"{base} is encrypted")
        if base == member:
            return cast(Opened, archive.open(item))
        if base == f"{member}.gz":
            return gzip.GzipFile(fileobj=archive.open(item))
        if nested and base.endswith(".zip"):
            if item.file_size > MOST_NESTED:
                raise zipfile.BadZipFile(f"{base} would unpack to {item.file_size:.2g} bytes")
            found = _open_zip(io.BytesIO(archive.read(item)), member, nested=False)
            if found is not None:
                return found
    return None


@contextmanager
def _naming(member: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{member}: not a table of the expected form ({error})") from error


def _numbers(lines: Any, member: str, columns: int, **how: Any) -> np.ndarray:
    """Read a table of numbers and check its width."""
    with _naming(member):
        table = np.loadtxt(lines, ndmin=2, **how)
    if table.shape[1] != columns or not len(table):
        raise ValueError(f"{member}: expected rows of {columns} numbers, got {table.shape}")
    return table


# --- preparation ---------------------------------------------------------------------------------


def _tenths(x: np.ndarray) -> Splits:
    """Split off the last tenth to test on, and of the rest the last tenth to validate on."""
    test = len(x) // 10
    validation = (len(x) - test) // 10
    return Splits(*np.split(x, [len(x) - test - validation, len(x) - test]))


def _standardized(splits: Splits, by: np.ndarray, ddof: int = 0) -> Splits:
    shift, scale = by.mean(0), by.std(0, ddof=ddof)
    return Splits(*((part - shift) / scale for part in splits))


def _varied(x: np.ndarray) -> np.ndarray:
    """Return which columns take their smallest value at most five times."""
    return (x == x.min(0)).sum(0) <= 5


def _power(open_member: Callable[[str], Opened]) -> Splits:
    member = "household_power_consumption.txt"

    def lines() -> Iterator[str]:
        with io.TextIOWrapper(cast(IO[bytes], open_member(member)), "ascii") as file:
            if file.readline().count(";") != 8:
                raise ValueError("expected nine columns separated by semicolons")
            for line in file:
                _, time, rest = line.rstrip().split(";", 2)
                if "?" not in rest and not rest.endswith(";"):
                    hour, minute, _ = time.split(":")
                    yield f"{rest};{60 * int(hour) + int(minute)}"

    x = _numbers(lines(), member, 8, delimiter=";")
    rng = np.random.RandomState(42)
    rng.shuffle(x)
    x = x[:, [0, 2, 4, 5, 6, 7]]
    voltage, active = 0.01 * rng.rand(len(x), 1), 0.001 * rng.rand(len(x), 1)
    x = x + np.hstack([active, voltage, rng.rand(len(x), 3), rng.rand(len(x), 1)])
    splits = _tenths(x)
    return _standardized(splits, np.concatenate(splits[:2]))


def _gas(open_member: Callable[[str], Opened]) -> Splits:
    member = "ethylene_CO.txt"
    with open_member(member) as file:
        x = _numbers(file, member, 19, skiprows=1)[:, 3:]
    x = x[np.random.RandomState(42).permutation(len(x))[: round(len(x) / 4)]]
    while True:
        with np.errstate(invalid="ignore"):  # a constant column correlates with none
            close = np.corrcoef(x.T) > 0.98
        several = np.flatnonzero(close.sum(1) > 1)
        if not len(several):
            break
        x = np.delete(x, several[0], 1)
    return _standardized(_tenths(x), x, ddof=1)


def _hepmass(open_member: Callable[[str], Opened]) -> Splits:
    parts = []
    for member, tenth in (("1000_train.csv", 700_000), ("1000_test.csv", 350_000)):
        with open_member(member) as file:
            # The test file has one column more than the training file: both are cut to features.
            how = dict(skiprows=1, max_rows=tenth, delimiter=",", usecols=range(28))
            x = _numbers(file, member, 28, **how)
        parts.append(x[x[:, 0] == 1, 1:])
    train, test = parts
    keep = _varied(train)
    validation = len(train) // 10
    splits = Splits(train[: len(train) - validation], train[len(train) - validation :], test)
    splits = Splits(*(part[:, keep] for part in splits))
    return _standardized(splits, train[:, keep], ddof=1)


def _miniboone(open_member: Callable[[str], Opened]) -> Splits:
    member = "MiniBooNE_PID.txt"
    with open_member(member) as file:
        with _naming(member):
            signal, _ = map(int, file.readline().split())
        x = _numbers(file, member, 50, max_rows=signal)
    x = x[x[:, 0] >= -100]
    splits = _tenths(x[:, _varied(x)])
    return _standardized(splits, np.concatenate(splits[:2]))


def _bsds300(open_member: Callable[[str], Opened]) -> Splits:
    with needed("an image", "pillow", "plot"):
        from PIL import Image
    images: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    with open_member("BSDS300-images.tgz") as file, tarfile.open(fileobj=file) as archive:
        for item in archive:
            folders = item.name.split("/")
            group = images.get(folders[-2]) if len(folders) > 1 else None
            if item.isfile() and item.name.endswith(".jpg") and group is not None:
                content = cast(IO[bytes], archive.extractfile(item)).read()
                picture = Image.open(io.BytesIO(content))
                group.append(np.asarray(picture.convert("L"), np.float32))
    if len(images["train"]) < 2 or not images["test"]:
        raise ValueError("BSDS300-images.tgz: expected folders train and test of .jpg pictures")
    rng = np.random.default_rng(42)
    most = min(round(0.9 * len(images["train"])), len(images["train"]) - 1)
    groups = images["train"][:most], images["train"][most:], images["test"]
    counts = SOURCES["bsds300"].rows
    return Splits(*(_patches(rng, g, n) for g, n in zip(groups, counts, strict=True)))


def _patches(rng: np.random.Generator, images: list[np.ndarray], count: int) -> np.ndarray:
    """Return random 8 x 8 patches in [0, 1], dequantized, mean subtracted, without the last pixel."""
    out = []
    shares = np.diff(np.linspace(0, count, len(images) + 1).astype(int))
    for image, n in zip(images, shares, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8))
        where = [rng.integers(0, size, n) for size in windows.shape[:2]]
        patch = windows[where[0], where[1]].reshape(n, 64)
        patch = (patch + rng.random(patch.shape, np.float32)) / 256
        out.append((patch - patch.mean(1, keepdims=True))[:, :63])
    return np.concatenate(out)


_UCI = "https://archive.ics.uci.edu/static/public"
_BSDS = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds"
SOURCES = {
    "power": Source(
        f"{_UCI}/235/individual+household+electric+power+consumption.zip",
        "power.zip",
        (1_659_917, 184_435, 204_928),
        6,
        _power,
    ),
    "gas": Source(
        f"{_UCI}/322/gas+sensor+array+under+dynamic+gas+mixtures.zip",
        "gas.zip",
        (852_174, 94_685, 105_206),
        8,
        _gas,
    ),
    "hepmass": Source(
        f"{_UCI}/347/hepmass.zip",
        "hepmass.zip",
        (315_123, 35_013, 174_987),
        21,
        _hepmass,
    ),
    "miniboone": Source(
        f"{_UCI}/199/miniboone+particle+identification.zip",
        "miniboone.zip",
        (29_556, 3_284, 3_648),
        43,
        _miniboone,
    ),
    "bsds300": Source(
        f"{_BSDS}/BSDS300-images.tgz",
        "BSDS300-images.tgz",
        (1_000_000, 50_000, 250_000),
        63,
        _bsds300,
    ),
}
