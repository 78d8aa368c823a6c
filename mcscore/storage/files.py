"""Writing files so that nothing is ever lost: aside first, then moved into place."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcscore.storage.processes import is_first


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it once the block ends without error.

    The temporary name is unique, so that threads and processes may write one path, and keeps the suffix, by
    which some writers choose their format. A link stays a link, what it leads to is replaced; a device or
    pipe stays what it is and is written to. Permissions of a file that is replaced are kept, a new one's
    are what the user's umask says. If a run has several processes, only the first writes.

    Raises:
        FileNotFoundError: If the folder is missing.
        IsADirectoryError: If ``path`` is a folder.
    """
    path = Path(path)
    if not is_first():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    if path.is_dir():
        raise IsADirectoryError(f"path: {path} is a folder")
    if path.exists() and not path.is_file():  # a device or pipe
        with tempfile.TemporaryDirectory() as folder:
            yield (aside := Path(folder) / path.name)
            with aside.open("rb") as made, path.open("wb") as target:
                shutil.copyfileobj(made, target)
        return
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: no folder {path.parent} for {path.name}")
    aside = path.with_name(f".{path.stem[:100]}-{secrets.token_hex(8)}{path.suffix}")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else _usual_mode(aside)
    try:
        yield aside
        aside.chmod(mode)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """Return the permissions that a new file at ``path`` gets; some writers give fewer."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text aside and move it into place."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def kept(path: Path) -> dict[str, Any] | None:
    """Return what a ``.json`` file holds; None where there is none, or it is damaged, with a warning."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        found = error
    if not isinstance(found, dict):
        text = f"{path} is damaged ({found}); it is made again"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        return None
    return found
