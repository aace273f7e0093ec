"""Files of other tools, read with nothing in them executed.

torch.save:   read by torch, with weights alone; of numpy's callables, which lists of accuracies are
              pickled with, and of options of a command line nothing runs either; before torch 1.6
              it wrote no archive, and inside of pickles it still writes none
pickle.dump:  of two tensors, whose storages are files of torch.save inside the pickle
numpy.savez:  arrays without objects
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from cmidd.datasets.pickles import Record, asks_for, unpickled

_NUMPY = ("multiarray.scalar", "multiarray._reconstruct")
_INERT: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
    *((Record, f"numpy.{core}.{name}") for core in ("core", "_core") for name in _NUMPY),
    *((Record, f"numpy.{name}") for name in ("dtype", "ndarray")),
    (Record, "argparse.Namespace"),  # options, beside the weights of a checkpoint
]
_MOST_UNPACKED = 100
"""Times the size of a packed file; numbers of images hardly pack, and zeros a thousandfold."""
_TENSOR_NAMES = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "_load_from_bytes"),
    ("collections", "OrderedDict"),
}
_ARCHIVE = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What a file of torch.save begins with that is no archive."""


def kind_of_file(path: Path) -> str:
    """Which call wrote a file, by its first bytes: torch.save, pickle.dump or numpy.savez."""
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start == _LEGACY:
        return "torch.save"
    if start.startswith(_ARCHIVE):
        try:
            with zipfile.ZipFile(path) as archive:
                is_arrays = all(name.endswith(".npy") for name in archive.namelist())
        except zipfile.BadZipFile:
            raise ValueError("is an archive that is cut short or damaged") from None
        return "numpy.savez" if is_arrays else "torch.save"
    if start[:1] == b"\x80":
        return "pickle.dump"
    what = "is empty" if not start else "is of another kind"
    raise ValueError(f"expected a file of torch.save, pickle.dump or numpy.savez; it {what}")


def load_torch(file: Path | io.BytesIO, of: str = "images") -> object:
    """What torch.save has written, on the CPU; `of` is what an error says that it holds."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_INERT):
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
        with file.open("rb") if isinstance(file, Path) else file as again:
            _check_has_numbers(again)
        return content
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        name = re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error))
        if name is not None:
            raise ValueError(asks_for(name[1], of)) from None
        raise ValueError(
            "expected a file that torch.save has written; it is cut short, damaged or of another "
            "kind"
        ) from None


def _check_has_numbers(file: BinaryIO) -> None:
    """Raise where a file that is no archive lacks numbers, for which torch gives unset memory."""
    file.seek(0)
    if file.read(len(_ARCHIVE)) == _ARCHIVE:
        return
    file.seek(0)
    for _ in ("the mark of the format", "its version", "sizes of types"):
        unpickled(file, ())
    reader = _StorageKeys(file)
    reader.load()
    match unpickled(file, ()):
        case list(stored) if reader.keys <= set(stored):
            return
    raise ValueError("expected the numbers of all tensors")


class _StorageKeys(pickle.Unpickler):
    """Notes which storages a file that torch has read asks for; nothing that it names is called."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.keys: set[object] = set()

    def find_class(self, module: str, name: str) -> type[Record]:  # noqa: ARG002
        return _Anything

    def persistent_load(self, saved_id: tuple[object, ...]) -> None:
        _, _, key, *_ = saved_id
        self.keys.add(key)


class _Anything(Record):
    def __setitem__(self, key: object, value: object) -> None:
        pass


def load_pickle(path: Path) -> object:
    """What pickle.dump has written: two tensors in a tuple or list, or anything else as it is."""
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the storages that it writes itself
        content = unpickled(file, _TENSOR_NAMES)
        if not isinstance(content, tuple | list) or len(content) != 2:
            return content
        found = [_tensor(each) if isinstance(each, Record) else each for each in content]
        return tuple(found) if isinstance(content, tuple) else found


def _tensor(record: Record) -> Tensor:
    match record.arguments:
        case (Record(arguments=(bytes(data),)), int(offset), tuple(shape), tuple(strides), *_) if (
            all(type(number) is int for number in (*shape, *strides))
        ):
            storage = load_torch(io.BytesIO(data))
            if not isinstance(storage, torch.storage.TypedStorage):
                raise ValueError("expected tensors with a storage of numbers each")
            untyped = storage.untyped()  # type: ignore[no-untyped-call]
            numbers = torch.empty(0, dtype=storage.dtype).set_(untyped)
            try:
                return numbers.as_strided(shape, strides, offset)
            except (RuntimeError, TypeError, ValueError):
                raise ValueError("expected tensors that lie within their storages") from None
    raise ValueError("expected two tensors")


def load_arrays(path: Path, names: Collection[str]) -> dict[str, object]:
    """The arrays of these names that numpy.savez has written, and None for each other one."""
    with zipfile.ZipFile(path) as archive:
        members = [each for each in archive.infolist() if each.filename[: -len(".npy")] in names]
    size, most = sum(each.file_size for each in members), _MOST_UNPACKED * path.stat().st_size
    if size > most:
        raise ValueError(f"expected arrays of at most {most:,} bytes, as images pack, got {size:,}")
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] if name in names else None for name in content.files}


def tensor_of(content: object, what: str, size: int) -> Tensor:
    """A tensor of a file of `size` bytes as float32 or int64; `what` is what an error calls it."""
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        content = torch.from_numpy(content.astype(content.dtype.newbyteorder("=")))
        size = content.numel() * content.element_size()
    if not isinstance(content, Tensor):
        raise ValueError(f"expected {what} to be a tensor, got {type(content).__name__}")
    if (
        content.is_nested
        or content.layout != torch.strided
        or content.device.type != "cpu"
        or content.is_quantized
        or content.is_complex()
    ):
        raise ValueError(
            f"expected {what} to be a plain tensor of numbers, got {content.dtype}, "
            f"{content.layout}, {content.device}{', nested' if content.is_nested else ''}"
        )
    if content.numel() * content.element_size() > size:
        raise ValueError(
            f"expected {what} of {tuple(content.shape)} numbers, and the file is too short for them"
        )
    return content.detach().to(torch.float32 if content.is_floating_point() else torch.int64)
