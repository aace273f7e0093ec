"""Whether files can be written to a folder, asked before the work that makes them."""

from __future__ import annotations

import tempfile
from pathlib import Path


def check_writable(folder: Path, argument: str) -> None:
    """Make a folder and write to it, or raise an error that begins with the argument's name."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{argument}: {folder} is a file; expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        raise OSError(
            f"{argument}: nothing can be written to {folder} ({error.strerror}); name another "
            "folder"
        ) from None
