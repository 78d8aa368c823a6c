"""Writing files so that nothing is ever lost: aside first, then moved into place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def moved_into_place(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it once the block ends without error.

    The temporary path keeps the suffix, by which some writers choose their format. Who may read the file is
    what the user's umask says (safetensors gives it to its owner alone).

    Raises:
        FileNotFoundError: If the folder is missing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: no folder {path.parent} for {path.name}")
    aside = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        aside.touch()
        mode = aside.stat().st_mode
        aside.unlink()  # a block that writes nothing replaces nothing
        yield aside
        aside.chmod(mode)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text aside and move it into place."""
    with moved_into_place(path) as aside:
        aside.write_text(text)
