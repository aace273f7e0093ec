"""Files on disk: where they are looked for, and errors that name the one that is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cmidd.datasets.known import KNOWN


class DatasetNotFound(FileNotFoundError):  # noqa: N818 - what `except` reads best
    """A dataset, or a part of one, is not where it was looked for."""


def find(name: str, places: Sequence[Path]) -> Path:
    """The first of `places` that exists, or an error that lists them and says how to get `name`."""
    for place in places:
        if place.exists():
            return place
    text = f"{name} was not found; looked for " + ", ".join(map(str, places))
    if name in KNOWN:
        text += (
            f". Get it from {KNOWN[name].page} and put it there, or load the copy on the Hugging "
            f"Face hub by the name hub:{KNOWN[name].hub}"
        )
        if KNOWN[name].package:
            text += f"; on Debian and Ubuntu `apt install {KNOWN[name].package}` brings it"
    raise DatasetNotFound(text)


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Turn whatever a broken file makes its reader raise into a ValueError that names the file.

    Errors of the file system, which have a number and name the file themselves, pass.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if isinstance(error, MemoryError):
            raise ValueError(f"{source}: needs more memory than there is") from error
        raise ValueError(f"{source}: {str(error) or type(error).__name__}") from error
