"""CIFAR-10 and CIFAR-100, in the binary layout or in that of Python, whichever is there.

    binary: records of [coarse label,] label, 3072 bytes; class names in a text file
    Python: pickled dicts of data (N, 3072) and labels; class names in another one

3072 bytes are 3 x 32 x 32. CIFAR-100 has the coarse label, which is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import find, reading
from cmidd.datasets.given import Array, labels_as_int64
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.pickles import read_pickle

_SHAPE = (3, 32, 32)
_BYTES = 3 * 32 * 32
_CLASSES = {"cifar10": 10, "cifar100": 100}
_BATCHES = tuple(f"data_batch_{batch}" for batch in range(1, 6))


def _read_binary(path: Path, name: str) -> tuple[Array, Array]:
    label_bytes = 1 if name == "cifar10" else 2
    record = label_bytes + _BYTES
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % record:
        raise ValueError(
            f"has {len(data)} bytes, which is not a number of records of {record} bytes; "
            "the file is cut short or of another kind"
        )
    records = data.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _read_binary_names(path: Path, name: str) -> list[str]:
    return path.read_text(encoding="utf-8").split()


def _read_python(path: Path, name: str) -> tuple[Array, Array]:
    content = read_pickle(path)
    images = content.get("data")
    if not isinstance(images, np.ndarray) or images.shape[1:] != (_BYTES,):
        raise ValueError(f"expected data to be an array of (N, {_BYTES}) pixels")
    return images, np.asarray(content.get("labels" if name == "cifar10" else "fine_labels"))


def _read_python_names(path: Path, name: str) -> list[str]:
    names = read_pickle(path).get("label_names" if name == "cifar10" else "fine_label_names")
    if not isinstance(names, list):
        raise ValueError(f"expected a list of names, got {type(names).__name__}")
    return [entry.decode() if isinstance(entry, bytes) else str(entry) for entry in names]


@dataclass(frozen=True)
class _Layout:
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    read: Callable[[Path, str], tuple[Array, Array]]  # (N, 3072) images and (N,) labels of a file
    read_names: Callable[[Path, str], list[str]]


_LAYOUTS = {
    "cifar10": (
        _Layout(
            "cifar-10-batches-bin",
            tuple(f"{batch}.bin" for batch in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
            _read_binary,
            _read_binary_names,
        ),
        _Layout(
            "cifar-10-batches-py",
            _BATCHES,
            "test_batch",
            "batches.meta",
            _read_python,
            _read_python_names,
        ),
    ),
    "cifar100": (
        _Layout(
            "cifar-100-binary",
            ("train.bin",),
            "test.bin",
            "fine_label_names.txt",
            _read_binary,
            _read_binary_names,
        ),
        _Layout(
            "cifar-100-python",
            ("train",),
            "test",
            "meta",
            _read_python,
            _read_python_names,
        ),
    ),
}


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read `cifar10` or `cifar100` from the first of its two layouts that is under `root`."""
    folder = find(name, [root / layout.folder for layout in _LAYOUTS[name]])
    layout = next(layout for layout in _LAYOUTS[name] if layout.folder == folder.name)

    def image_set(files: tuple[str, ...]) -> ImageSet:
        batches = [_batch(layout, find(name, [folder / file]), name) for file in files]
        images, labels = zip(*batches, strict=True)
        return ImageSet.from_arrays(np.concatenate(images), np.concatenate(labels), _CLASSES[name])

    names_file = find(name, [folder / layout.names])
    with reading(names_file):
        class_names = tuple(layout.read_names(names_file, name))
        if len(class_names) != _CLASSES[name]:
            raise ValueError(f"expected {_CLASSES[name]} class names, got {len(class_names)}")
    return Dataset.known(name, image_set(layout.train), image_set((layout.test,)), class_names)


def _batch(layout: _Layout, path: Path, name: str) -> tuple[Array, Array]:
    """Images (N, 3, 32, 32) and labels (N,) of one file, checked where the file is known."""
    with reading(path):
        images, labels = layout.read(path, name)
        labels_as_int64(labels, _CLASSES[name])
        if len(images) != len(labels):
            raise ValueError(f"has {len(images)} images and {len(labels)} labels")
        return images.reshape(-1, *_SHAPE), labels
