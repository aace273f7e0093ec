"""Files of tensors: safetensors with a JSON record, written whole or not at all, read with checks.

A file says in its metadata what it is:

    {"cmidd": '{"kind": "synthetic set", "format": 1, ...}'}

Nothing here runs code from a file, and a file that is cut short, of another kind or of a later
format is an error that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

FORMAT = 1


class FileError(ValueError):
    """A file that cannot be used; the message names it and says why."""


def write_tensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write atomically: after a crash `path` holds what it held before, or all of this."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, metadata=metadata(kind, record)))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file that `write_tensors` made with the same `kind`."""
    with opened(path, kind) as (file, record):
        return {name: file.get_tensor(name) for name in file.keys()}, record  # noqa: SIM118


def kind_of(path: Path) -> str | None:
    """What a file says that it is; None where it is none of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads(file.metadata()["cmidd"])["kind"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


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
    return {"cmidd": json.dumps({"kind": kind, "format": FORMAT, **record}, sort_keys=True)}


def _record(path: Path, kind: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    try:
        record = json.loads((metadata or {})["cmidd"])
        found, version = record["kind"], record["format"]
    except (KeyError, TypeError, ValueError):
        raise FileError(
            f"{path}: expected a {kind} written by cmidd, got a safetensors file without its record"
        ) from None
    if found != kind:
        raise FileError(f"{path}: expected a {kind}, got a {found}")
    if version != FORMAT:
        raise FileError(
            f"{path}: expected format {FORMAT}, got {version}; another version of cmidd wrote it"
        )
    return dict(record)


def _why(path: Path, error: SafetensorError) -> str:
    start = path.read_bytes()[:4] if path.stat().st_size < 2**20 else path.open("rb").read(4)
    if not start:
        return "it is empty"
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return "it looks like a pickle (a torch.save file), which is never loaded"
    return f"it is damaged or something else ({error})"


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically, and durably: the folder too knows of it before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text."""
    write_bytes(path, text.encode())


def in_words(size: int) -> str:
    """Bytes as people read them."""
    return str(tqdm.format_sizeof(size, "B"))
