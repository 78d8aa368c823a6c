"""Download a file: resumed where it stopped, checked, and moved into place only when whole."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from mcscore.datasets.literature import source_of
from mcscore.storage import digest_of_file
from mcscore.storage.files import write_text

CHUNK = 1 << 20
PATIENCE, SLOWEST = 60, 1000  # seconds, and bytes per second after them
MAGIC = {".zip": b"PK", ".tgz": b"\x1f\x8b", ".gz": b"\x1f\x8b"}


def fetch(
    name: str,
    root: str | Path,
    *,
    url: str | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> Path:
    """Download a table of the density-estimation benchmark from its owner, for ``datasets.uci``.

    An interrupted download goes on where it stopped when called again; the file gets its name only
    once it is whole. A file that is there already is not downloaded again.

    Args:
        name: "power", "gas", "hepmass", "miniboone" or "bsds300".
        root: Folder to write to; made if it is missing.
        url: Another address, e.g. a mirror of yours.
        sha256: Hexadecimal digest that the file must have (the owners publish none).
        progress: Whether to show a bar.

    Returns:
        Path of the file.

    Raises:
        ValueError: If ``name`` is unknown or the file's digest is not ``sha256``.
        OSError: If the server fails, is slower than 1 kB/s, sends another kind of file, or ends before the
            file does; what came is kept for the next call, which goes on if the file is still the same.
    """
    source = source_of(name)
    path = Path(root) / source.archive
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        _resume(url or source.url, part, progress)
        _check(part, sha256)
        os.replace(part, path)
    else:
        _check(path, sha256, keep=True)
    return path


def _resume(url: str, part: Path, progress: bool) -> None:
    """Bring ``part`` to its full length, from the length it has, if the server still has that very file."""
    mark = part.with_name(f"{part.name}.mark")  # what the server calls this version of the file
    known = mark.read_text() if mark.exists() else ""
    start = part.stat().st_size if part.exists() and known else 0
    headers = {"Range": f"bytes={start}-", "If-Range": known} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "mcscore"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            sent = answer.headers.get("Content-Range", "")
            if answer.status == 206 and not sent.startswith(f"bytes {start}-"):
                part.unlink(missing_ok=True)
                raise OSError(
                    f"{url}: expected bytes from {start}, got {sent!r}; call again to start anew"
                )
            if answer.status != 206:  # the server sends the whole file again
                start = 0
                part.unlink(missing_ok=True)
                tag = answer.headers.get("ETag", "")
                write_text(mark, answer.headers.get("Last-Modified", "") if tag[:1] != '"' else tag)
            _receive(url, answer, part, start, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not _is_whole(error.headers.get("Content-Range"), start):
                raise OSError(f"{url}: {error}") from error
    except (urllib.error.URLError, HTTPException, TimeoutError) as error:
        raise OSError(f"{url}: {error}") from error
    mark.unlink(missing_ok=True)


def _is_whole(content_range: str | None, have: int) -> bool:
    """Return whether a server that has nothing left (416) says that we have it all."""
    return content_range == f"bytes */{have}"


def _receive(url: str, answer: HTTPResponse, part: Path, start: int, progress: bool) -> None:
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length else None
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=not progress)
    began, came = time.monotonic(), 0
    with bar, part.open("ab" if start else "wb") as file:
        while chunk := answer.read1(CHUNK):
            if not start and not came:
                _check_kind(url, chunk, part)
            file.write(chunk)
            bar.update(len(chunk))
            came += len(chunk)
            waited = time.monotonic() - began
            if waited > PATIENCE and came < SLOWEST * waited:
                raise OSError(f"{url}: {came} bytes in {waited:.0f} s; call again to go on")
    have = part.stat().st_size
    if not have or (total is not None and have != total):
        whole = total or "some"
        raise OSError(f"{url}: the server stopped at {have} of {whole} bytes; call again to go on")


def _check_kind(url: str, begin: bytes, part: Path) -> None:
    """Raise ``OSError`` if a file does not begin as its name says: a login page is no archive."""
    wanted = MAGIC.get(Path(part.stem).suffix)
    if wanted is not None and not begin.startswith(wanted[: len(begin)]):
        raise OSError(
            f"{url}: expected {part.stem}, got something else that begins with {begin[:20]!r}"
        )


def _check(path: Path, sha256: str | None, keep: bool = False) -> None:
    if sha256 is None:
        return
    found = digest_of_file(path)
    if found != sha256.lower():
        if not keep:  # a wrong file would be "whole" for ever
            path.unlink()
        raise ValueError(f"sha256: expected {sha256}, {path.name} has {found}")
