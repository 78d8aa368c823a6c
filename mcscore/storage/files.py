"""Writing files so that nothing is ever lost: aside first, then moved into place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it once the block ends without error.

    The temporary name is unique, so that threads and processes may write one path, and keeps the suffix, by
    which some writers choose their format. Who may read the file is what the user's umask says.

    Raises:
        FileNotFoundError: If the folder is missing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: no folder {path.parent} for {path.name}")
    handle, name = tempfile.mkstemp(path.suffix, f".{path.stem}-", path.parent)
    os.close(handle)
    aside = Path(name)
    aside.unlink()  # a block that writes nothing replaces nothing
    try:
        yield aside
        aside.chmod(0o666 & ~_umask())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _umask() -> int:
    """Return which permissions new files lack; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text aside and move it into place."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
