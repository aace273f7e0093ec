"""MNIST and FashionMNIST: idx files, as they are or packed by gzip.

images: 0x00000803, count, height, width as big-endian uint32, then a byte a pixel
labels: 0x00000801, count as big-endian uint32, then a byte a label
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import find, reading
from cmidd.datasets.given import Array, labels_as_int64
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.known import KNOWN

_FOLDERS = {
    "mnist": ("MNIST/raw", "MNIST", "mnist", "."),
    "fashionmnist": ("FashionMNIST/raw", "FashionMNIST", "fashionmnist", "fashion-mnist", "."),
}
SYSTEM_FOLDERS = {"fashionmnist": Path("/usr/share/datasets/fashion-mnist")}
"""Where packages of the system put them."""
_UNSIGNED_BYTES = 0x08
_GZIP_MOST = 1032  # a byte packed by deflate cannot become more


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read `mnist` or `fashionmnist`, each file from the first folder that has it."""
    folders = [root / folder for folder in _FOLDERS[name]]
    if name in SYSTEM_FOLDERS:
        folders.append(SYSTEM_FOLDERS[name])

    def image_set(split: str) -> ImageSet:
        files = []
        for file in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
            places = [folder / file for folder in folders]
            both = [place.with_name(place.name + end) for place in places for end in ("", ".gz")]
            files.append(find(name, both))
        images, labels = read_idx(files[0], axes=3), read_idx(files[1], axes=1)
        with reading(files[1]):
            labels_as_int64(labels, num_classes=10)
        with reading(files[0]):
            return ImageSet.from_arrays(images, labels, num_classes=10)

    return Dataset.known(name, image_set("train"), image_set("t10k"), KNOWN[name].class_names)


def read_idx(path: Path, axes: int) -> Array:
    """The uint8 array of `axes` axes in an idx file."""
    packed = path.suffix == ".gz"
    most = path.stat().st_size * (_GZIP_MOST if packed else 1)
    with reading(path), gzip.open(path) if packed else path.open("rb") as file:
        header = file.read(4 + 4 * axes)
        if len(header) < 4 + 4 * axes:
            raise ValueError(f"has {len(header)} bytes of a header of {4 + 4 * axes}")
        magic, *shape = struct.unpack(f">{1 + axes}I", header)
        if magic != (_UNSIGNED_BYTES << 8) + axes:
            raise ValueError(
                f"starts with 0x{magic:08x}, expected 0x{(_UNSIGNED_BYTES << 8) + axes:08x}; "
                "the file is of another kind"
            )
        expected = math.prod(shape)
        # A header that promises more than can follow is not given the memory it asks for.
        data = file.read(expected) if expected <= most else b""
        if len(data) < expected:
            raise ValueError(
                f"is cut short: its header says {' x '.join(map(str, shape))} = {expected} bytes"
            )
        if file.read(1):
            raise ValueError(f"goes on after the {expected} bytes that its header says")
        return np.frombuffer(data, np.uint8).reshape(shape)
