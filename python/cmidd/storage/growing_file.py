"""A safetensors file of `count` items that is filled item by item, for long training.

Every tensor is stacked, `(count, ...)`; `trained` (count,) uint8 says which items are done. The
file is laid out whole at the start and each piece written into its place, so that filling a file of
any size takes the memory of one piece. An item counts once its mark is on disk, which is written
after all else of it, and a killed run goes on with the items that do not. Only a complete file has
the name that was asked for; until then it ends in `.partial`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmidd.storage.tensor_file import in_words, metadata

MARKS = "trained"
_CODES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


def partial_path(path: Path) -> Path:
    """Where a file grows until it is complete."""
    return path.with_name(path.name + ".partial")


def check_complete(path: Path, what: str) -> None:
    """Raise where there is no more than the beginning of a file, with what to do about it."""
    if not path.exists() and partial_path(path).exists():
        raise FileNotFoundError(
            f"{path}: the {what} is not complete; give the command that began it --resume"
        )


class _Place(NamedTuple):
    """A stacked tensor in the file: where it starts and how much one item takes, in bytes."""

    start: int
    size: int


class GrowingFile:
    """The file while it is filled: new, or begun by a run with the same header.

    Args:
        path: the name it has once it is complete.
        kind: of file, as `tensor_file.opened` checks it.
        record: what its items are made by.
        count: how many items there are.
        items: dtype and shape of an item's tensors, which may be without memory (meta).
        resume: whether a file that is there may be gone on with.
        what: the file, in a word for messages.
        lower: the options that make it smaller, in words.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        record: Mapping[str, Any],
        count: int,
        items: Mapping[str, Tensor],
        *,
        resume: bool,
        what: str,
        lower: str,
    ) -> None:
        self.path = path if path.exists() else partial_path(path)
        begun = self.path.exists()
        if begun and not resume:
            raise FileExistsError(
                f"out: {self.path} exists already; add --resume to go on with it, or name another "
                "file"
            )
        self._complete_path = path
        self._count = count
        head, self._places = _layout(metadata(kind, record), count, items)
        self.size = len(head) + count * sum(place.size for place in self._places.values())
        if begun:
            with self.path.open("rb") as file:
                if file.read(len(head)) != head:
                    raise ValueError(
                        f"resume: {self.path} is a {what} with other settings; give the same ones, "
                        "or name another file"
                    )
        self._check_room(lower)
        if not begun:
            path.parent.mkdir(parents=True, exist_ok=True)
            started = path.with_name(f".{self.path.name}")
            with started.open("wb") as file:
                file.write(head)
                file.truncate(self.size)
            started.replace(self.path)

    def missing(self) -> list[int]:
        """The items that are not done."""
        with self.path.open("rb") as file:
            file.seek(self._places[MARKS].start)
            marks = file.read(self._count)
        return [k for k in range(self._count) if marks[k : k + 1] != b"\x01"]

    def write(self, item: int, tensors: Mapping[str, Tensor], part: int = 0) -> None:
        """Put tensors of an item on disk, or of each its equal part number `part`."""
        with self.path.open("r+b") as file:
            for name, tensor in tensors.items():
                place = self._places[name]
                content = tensor.detach().cpu().contiguous().numpy().tobytes()
                file.seek(place.start + item * place.size + part * len(content))
                file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def put(self, item: int, tensors: Mapping[str, Tensor]) -> None:
        """Write what an item still lacks; it counts once all of it is on disk."""
        self.write(item, tensors)
        self.write(item, {MARKS: torch.ones((), dtype=torch.uint8)})

    def complete(self) -> None:
        """Give the file its name."""
        self.path.replace(self._complete_path)

    def _check_room(self, lower: str) -> None:
        """Raise where the disk cannot hold what is not on it yet: the file begins as a hole."""
        on_disk = self.path.stat().st_blocks * 512 if self.path.exists() else 0
        folder = next(parent for parent in self.path.absolute().parents if parent.exists())
        self.free = shutil.disk_usage(folder).free
        if self.size - on_disk > self.free:
            raise ValueError(
                f"out: {self._complete_path} takes {in_words(self.size - on_disk)}, and "
                f"{folder} has {in_words(self.free)} free; lower {lower}, or name a file on "
                "another disk"
            )


def _layout(
    about: dict[str, str], count: int, items: Mapping[str, Tensor]
) -> tuple[bytes, dict[str, _Place]]:
    """The first bytes of the file, and where tensors are in it; wide types first, to be aligned."""
    header: dict[str, Any] = {"__metadata__": about}
    offsets: dict[str, _Place] = {}
    position = 0
    entries = {**items, MARKS: torch.empty((), dtype=torch.uint8)}
    for name, tensor in sorted(entries.items(), key=lambda e: -e[1].element_size()):
        size = tensor.element_size() * math.prod(tensor.shape)
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": [count, *tensor.shape],
            "data_offsets": [position, position + count * size],
        }
        offsets[name] = _Place(position, size)
        position += count * size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: _Place(len(head) + at, size) for name, (at, size) in offsets.items()}
