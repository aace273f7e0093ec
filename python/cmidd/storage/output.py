"""Writing files: whole or not at all, with room for them, and with errors that name them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` where the system cannot write it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # one of ours, which says all
            raise
        reason = f"{path}: cannot be written: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += f" ({in_words(_free(path)[1])} free there); make room, or name another place"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason += "; name another place"
        raise OSError(reason) from None


def check_replaced(out: Path, *, overwrite: bool, such_as: str = "") -> None:
    """Raise where nothing may be written to the file `out`; `such_as` is one in a folder."""
    if out.is_dir():
        example = such_as and f", such as {such_as}"
        raise IsADirectoryError(f"out: {out} is a folder; name a file in it{example}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"out: {out} exists already; add --overwrite, or name another file")


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


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically, and durably: the folder too knows of it before this returns."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk or a signal: what is there of it is of no use
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text."""
    write_bytes(path, text.encode())


def check_room(path: Path, size: int, lower: str) -> int:
    """Bytes that are free for `path`; raise where they are fewer, with what to `lower`."""
    folder, free = _free(path)
    if size > free:
        raise ValueError(
            f"out: {path} takes {in_words(size)}, and {folder} has {in_words(free)} free; lower "
            f"{lower}, or name a file on another disk"
        )
    return free


def _free(path: Path) -> tuple[Path, int]:
    """The nearest folder that is there, and the bytes that are free in it."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    return folder, shutil.disk_usage(folder).free


def in_words(size: int) -> str:
    """Bytes as people read them."""
    return str(tqdm.format_sizeof(size, "B"))
