"""A safetensors file of `count` items that is filled item by item, for long training.

Every tensor is stacked, `(count, ...)`; `trained` (count,) uint8 says which items are done, and
`crc32 of NAME` (count,) or (count, parts) int64 has the checksums of each. The file is laid out
whole at the start and each piece written into its place, so that filling a file of any size takes
the memory of one piece. An item counts once its mark is on disk, which is written after all else of
it, and a killed run goes on with the items that do not. Only a complete file has the name that was
asked for; until then it ends in `.partial`. A file of fewer items is taken over into one of more.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from cmidd.storage.going_on import check_new, check_same, differences
from cmidd.storage.output import check_room, writing
from cmidd.storage.tensor_file import FileError, bytes_of, check_sum, metadata, without_checksums

MARKS = "trained"
CRC_OF = "crc32 of "
_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
_COPIED = 2**24  # bytes at once


def partial_path(path: Path) -> Path:
    """Where a file grows until it is complete."""
    return path.parent / f"{path.name}.partial"


def check_complete(path: Path, what: str) -> None:
    """Raise where there is no more than the beginning of a file, with what to do about it."""
    if not path.exists() and partial_path(path).exists():
        raise FileNotFoundError(
            f"{path}: the {what} is not complete; give the command that began it --resume"
        )


def check_piece(path: Path, name: str, tensor: Tensor, crc: Tensor) -> None:
    """Raise where a piece of a tensor is not what was written."""
    check_sum(f"{path}: a piece of {name}", zlib.crc32(bytes_of(tensor)), int(crc))


def size_of(kind: str, record: Mapping[str, Any], count: int, items: Mapping[str, Tensor]) -> int:
    """Bytes of a file of `count` items with such a record, as `GrowingFile` takes them."""
    entries = _layout(count, items, {})
    return len(_bytes_of_head(metadata(kind, record), entries)) + _end_of(entries)


class _Place(NamedTuple):
    """A stacked tensor in the file: where it starts and how much one item takes, in bytes."""

    start: int
    size: int


class _Head(NamedTuple):
    """How a file begins: what it is, how many items it has, and where they are."""

    path: Path
    settings: dict[str, Any]
    items: int
    entries: dict[str, Any]
    length: int

    @property
    def places(self) -> dict[str, _Place]:
        """Where each tensor is."""
        return {
            name: _Place(self.length + first, (last - first) // self.items)
            for name, entry in self.entries.items()
            for first, last in [entry["data_offsets"]]
        }

    def marks(self) -> bytes:
        """A byte of 1 for each item that is done."""
        with self.path.open("rb") as file:
            file.seek(self.places[MARKS].start)
            return file.read(self.items)


class GrowingFile:
    """The file while it is filled: new, or begun by a run with the same settings.

    Whoever fills it holds the lock of its path, or that of an item (`shared_filling.py`).

    Args:
        path: the name it has once it is complete.
        kind: of file, as `tensor_file.opened` checks it.
        record: what its items are made by.
        count: how many items there are.
        items: dtype and shape of an item's tensors, which may be without memory (meta).
        parts: of tensors that are written part by part, in how many.
        resume: whether a file that is there may be gone on with.
        what: the file, in a word for messages.
        lower: the options that make it smaller, in words.
        grows: the name in the record that counts the items.
        noted: what the record says beside its settings, which may be another when it goes on.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        record: Mapping[str, Any],
        count: int,
        items: Mapping[str, Tensor],
        *,
        parts: Mapping[str, int] | None = None,
        resume: bool,
        what: str,
        lower: str,
        grows: str = "",
        noted: Mapping[str, Any] | None = None,
    ) -> None:
        check_new(path, partial_path(path), resume=resume)
        self.complete_path, self._count = path, count
        self._in_parts = tuple(parts or ())
        noted = noted or {}
        entries = _layout(count, items, parts or {})
        head = _bytes_of_head(metadata(kind, {**record, **noted}), entries)
        self.size = len(head) + _end_of(entries)
        begun = [_read_head(each, what) for each in (partial_path(path), path) if each.exists()]
        # What the record of a file holds, and not its words, which are of the version that made it.
        counted = grows or "items"
        settings = json.loads(json.dumps({"kind": kind, **record, counted: count}))
        found = [
            differences(
                {**each.settings, counted: each.items},
                settings,
                may_change=noted,
                may_grow=(grows,),
            )
            for each in begun
        ]
        same = [
            each
            for each, wrong in zip(begun, found, strict=True)
            if each.items == count and not wrong
        ]
        self.path = same[0].path if same else partial_path(path)
        self.free = check_room(path, self.size - (_on_disk(self.path) if same else 0), lower)
        if not same:
            for each, wrong in zip(begun, found, strict=True):
                check_same(f"{each.path} is a {what}", wrong)
            source = max(begun, key=lambda each: sum(each.marks()), default=None)
            self._start(head, entries, source, what)
            same = [_read_head(self.path, what)]
        elif same[0].entries != entries:
            raise _other_version(self.path, what)
        self._places = same[0].places

    def _start(self, head: bytes, entries: dict[str, Any], source: _Head | None, what: str) -> None:
        """Lay the file out, with what is done of another that has fewer items."""
        if source is not None and source.entries.keys() != entries.keys():
            raise _other_version(source.path, what)
        path = partial_path(self.complete_path)
        started = path.with_name(f".{path.name}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with started.open("wb") as file:
                    file.write(head)
                    file.truncate(self.size)
                    if source is not None:
                        for name, place in source.places.items():
                            file.seek(len(head) + entries[name]["data_offsets"][0])
                            _copy(source.path, place.start, place.size * source.items, file)
                    _to_disk(file)
                started.replace(path)
            except BaseException:  # a full disk, or a signal while much is copied
                started.unlink(missing_ok=True)
                raise

    def missing(self) -> list[int]:
        """The items that are not done."""
        with self._opened() as file:
            file.seek(self._places[MARKS].start)
            marks = file.read(self._count)
        return [k for k in range(self._count) if marks[k : k + 1] != b"\x01"]

    def is_done(self, item: int) -> bool:
        """Whether an item is done."""
        with self._opened() as file:
            file.seek(self._places[MARKS].start + item)
            return file.read(1) == b"\x01"

    def is_begun(self, item: int) -> bool:
        """Whether the first part is on disk of each tensor that is written part by part."""
        with self.path.open("rb") as file:
            for name in self._in_parts:
                place = self._places[CRC_OF + name]
                file.seek(place.start + item * place.size)
                if not any(file.read(8)):
                    return False
        return True

    def write(self, item: int, tensors: Mapping[str, Tensor], part: int = 0) -> None:
        """Put tensors of an item on disk, or of each its part number `part`."""
        with writing(self.path), self.path.open("r+b") as file:
            for name, tensor in tensors.items():
                content = bytes_of(tensor)
                self._write_piece(file, name, item, part, content)
                crc = torch.tensor(zlib.crc32(content))
                self._write_piece(file, CRC_OF + name, item, part, bytes_of(crc))
            _to_disk(file)

    def put(self, item: int, tensors: Mapping[str, Tensor]) -> None:
        """Write what an item still lacks; it counts once all of it is on disk."""
        self.write(item, tensors)
        with writing(self.path), self.path.open("r+b") as file:
            self._write_piece(file, MARKS, item, 0, b"\x01")
            _to_disk(file)

    def _write_piece(
        self, file: BinaryIO, name: str, item: int, part: int, content: bytes | memoryview
    ) -> None:
        place = self._places[name]
        file.seek(place.start + item * place.size + part * len(content))
        file.write(content)

    def complete(self) -> None:
        """Give the file its name."""
        with self._opened():
            self.path.replace(self.complete_path)

    def _opened(self) -> BinaryIO:
        """The file to read, to which another process may have given its name meanwhile."""
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            self.path = self.complete_path
            return self.path.open("rb")


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _on_disk(path: Path) -> int:
    """Bytes that a file takes, which begins as a hole."""
    return path.stat().st_blocks * 512


def _copy(source: Path, start: int, size: int, target: BinaryIO) -> None:
    """Copy what is there of a part of a file, which may be cut short."""
    with source.open("rb") as file:
        file.seek(start)
        while content := file.read(min(size, _COPIED)):
            target.write(content)
            size -= len(content)


def _layout(
    count: int, items: Mapping[str, Tensor], parts: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """The header's entry of each tensor; wide types first, to be aligned."""
    crcs = {
        CRC_OF + name: torch.empty([parts[name]] if name in parts else [], dtype=torch.int64)
        for name in items
    }
    all_of_them = {**items, **crcs, MARKS: torch.empty((), dtype=torch.uint8)}
    entries: dict[str, dict[str, Any]] = {}
    position = 0
    for name, tensor in sorted(all_of_them.items(), key=lambda e: -e[1].element_size()):
        size = tensor.element_size() * math.prod(tensor.shape)
        entries[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": [count, *tensor.shape],
            "data_offsets": [position, position + count * size],
        }
        position += count * size
    return entries


def _end_of(entries: Mapping[str, Any]) -> int:
    """Bytes of all tensors."""
    return int(max(entry["data_offsets"][1] for entry in entries.values()))


def _bytes_of_head(about: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    text = json.dumps({"__metadata__": about, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_head(path: Path, what: str) -> _Head:
    """How a file begins, which `GrowingFile` wrote."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(min(length, path.stat().st_size)))
        settings = without_checksums(json.loads(entries.pop("__metadata__")["cmidd"]))
        del settings["format"]
        return _Head(path, settings, entries[MARKS]["shape"][0], entries, 8 + length)
    except (LookupError, TypeError, ValueError):
        raise FileError(
            f"resume: {path} is no {what} that cmidd began; name another file"
        ) from None


def _other_version(path: Path, what: str) -> FileError:
    return FileError(
        f"resume: {path} is a {what} that another version of cmidd began, with other tensors; name "
        "another file"
    )
