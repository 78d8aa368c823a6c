"""Download a file: resumed where it stopped, checked, and moved into place only when whole."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from mcscore.datasets.literature import source_of
from mcscore.storage import digest_of_file

CHUNK = 1 << 20


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
        OSError: If the server fails, or ends before the file does; what came is kept for the next call.
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
    """Bring ``part`` to its full length, from the length it has."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.status != 206:  # the server sends the whole file again
                start = 0
            _receive(answer, part, start, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 416 or not _is_whole(error.headers.get("Content-Range"), start):
                raise OSError(f"{url}: {error}") from error
    except (urllib.error.URLError, HTTPException, TimeoutError) as error:
        raise OSError(f"{url}: {error}") from error


def _is_whole(content_range: str | None, have: int) -> bool:
    """Return whether a server that has nothing left (416) says that we have it all."""
    return content_range == f"bytes */{have}"


def _receive(answer: HTTPResponse, part: Path, start: int, progress: bool) -> None:
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length else None
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=not progress)
    with bar, part.open("ab" if start else "wb") as file:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    have = part.stat().st_size
    if total is not None and have != total:
        raise OSError(f"the server stopped at {have} of {total} bytes; call again to go on")


def _check(path: Path, sha256: str | None, keep: bool = False) -> None:
    if sha256 is None:
        return
    found = digest_of_file(path)
    if found != sha256.lower():
        if not keep:  # a wrong file would be "whole" for ever
            path.unlink()
        raise ValueError(f"sha256: expected {sha256}, {path.name} has {found}")
