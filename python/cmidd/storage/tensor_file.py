"""Files of tensors: safetensors with a JSON record, written whole or not at all, read with checks.

A file says in its metadata what it is, with checksums (CRC-32) of that and of its tensors:

    {"cmidd": '{"kind": "synthetic set", "format": 1, ..., "crc32": ..., "crc32 of tensors": ...}'}

Nothing here runs code from a file, and a file that is cut short, damaged, of another kind or of a
later format is an error that names it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidd.storage.output import write_bytes

FORMAT = 1
_CRC, _CRC_OF_TENSORS = "crc32", "crc32 of tensors"
_NO_RECORD = (KeyError, TypeError, ValueError, RecursionError)  # the last of lists in lists


class InPieces(Protocol):
    """A tensor of which only some rows are there at a time."""

    @property
    def dtype(self) -> torch.dtype:
        """As of the tensor."""

    @property
    def shape(self) -> torch.Size:
        """As of the tensor."""

    def pieces(self) -> Iterator[Tensor]:
        """All rows in order, some at a time."""


class FileError(ValueError):
    """A file that cannot be used; the message names it and says why."""


def write_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write atomically: after a crash `path` holds what it held before, or all of this."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {**record, _CRC_OF_TENSORS: checksum(contiguous)}
    write_bytes(path, save(contiguous, metadata=metadata(kind, about)))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file that `write_tensors` made with the same `kind`."""
    with opened(path, kind) as (file, record):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = json.loads(file.metadata()["cmidd"]).get(_CRC_OF_TENSORS)
    if expected is not None:  # which older files lack
        check_sum(f"{path}: its tensors", checksum(tensors), expected)
    return tensors, record


def checksum(tensors: Mapping[str, Tensor | InPieces]) -> int:
    """CRC-32 of tensors on the CPU, with their names, dtypes and shapes."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        for piece in [tensor] if isinstance(tensor, Tensor) else tensor.pieces():
            crc = zlib.crc32(bytes_of(piece), crc)
    return crc


def bytes_of(tensor: Tensor) -> memoryview:
    """What a file holds of a tensor."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def check_sum(what: str, found: int, expected: object) -> None:
    """Raise where a file is not what was written; `what` names it and its part."""
    if found != expected:
        raise FileError(
            f"{what}: expected the checksum {expected}, got {found}; the file is damaged, so take "
            "another copy or make it again"
        )


def record_of(path: Path) -> dict[str, Any]:
    """What a file says of itself; nothing where it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return without_checksums(json.loads(file.metadata()["cmidd"]))
    except (*_NO_RECORD, AttributeError, OSError, SafetensorError):
        return {}


def kind_of(path: Path) -> str | None:
    """What a file says that it is; None where it is none of ours."""
    kind = record_of(path).get("kind")
    return None if kind is None else str(kind)


@contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open safetensors file and its record, checked."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with a {kind}, found none")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _record(path, kind, file.metadata())
    except SafetensorError as error:
        raise FileError(
            f"{path}: expected a safetensors file with a {kind}; {_why(path, error)}"
        ) from None


def metadata(kind: str, record: Mapping[str, Any]) -> dict[str, str]:
    """The record as safetensors keeps it."""
    about = {"kind": kind, "format": FORMAT, **record}
    return {"cmidd": json.dumps({**about, _CRC: _checksum_of_record(about)}, sort_keys=True)}


def _checksum_of_record(about: Mapping[str, Any]) -> int:
    rest = {name: value for name, value in about.items() if name != _CRC}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def without_checksums(about: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what only this file looks at."""
    return {k: value for k, value in about.items() if k not in (_CRC, _CRC_OF_TENSORS)}


def _record(path: Path, kind: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        record = json.loads((metadata or {})["cmidd"])
        found, version = record["kind"], record["format"]
    except _NO_RECORD:
        raise FileError(
            f"{path}: expected a {kind} written by cmidd, got a safetensors file without its record"
        ) from None
    if found != kind:
        raise FileError(f"{path}: expected a {kind}, got a {found}")
    if version != FORMAT:
        raise FileError(
            f"{path}: expected format {FORMAT}, got {version}; another version of cmidd wrote it"
        )
    if _CRC in record:  # which older files lack
        check_sum(f"{path}: its record", _checksum_of_record(record), record[_CRC])
    return without_checksums(record)


def _why(path: Path, error: SafetensorError) -> str:
    start = path.read_bytes()[:4] if path.stat().st_size < 2**20 else path.open("rb").read(4)
    if not start:
        return "it is empty"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return (
            "it looks like a pickle (a torch.save file), which is never loaded; cmidd convert "
            "reads sets of other tools"
        )
    return f"it is damaged or something else ({error})"
