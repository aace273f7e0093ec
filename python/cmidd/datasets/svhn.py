"""SVHN, cropped house numbers: MATLAB files of X (32, 32, 3, N) pixels and y (N, 1) labels.

Labels run from 1 to 10, where 10 is the digit 0.
"""

from __future__ import annotations

from pathlib import Path

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import find, reading
from cmidd.datasets.given import labels_as_int64
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.known import KNOWN

_FOLDERS = ("svhn", "SVHN", ".")


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read `train_32x32.mat` and `test_32x32.mat`."""

    def image_set(file: str) -> ImageSet:
        return _read(find(name, [root / folder / file for folder in _FOLDERS]))

    train, test = image_set("train_32x32.mat"), image_set("test_32x32.mat")
    return Dataset.known(name, train, test, KNOWN[name].class_names)


def _read(path: Path) -> ImageSet:
    from scipy.io import loadmat

    with reading(path):
        content = loadmat(path, variable_names=("X", "y"))
        if not {"X", "y"} <= content.keys():
            raise ValueError("expected the arrays X and y")
        images, labels = content["X"], content["y"]
        if images.shape[:3] != (32, 32, 3) or images.ndim != 4:
            raise ValueError(f"expected X of shape (32, 32, 3, N), got {images.shape}")
        digits = labels_as_int64(labels.reshape(-1), num_classes=11) % 10
        return ImageSet.from_arrays(images.transpose(3, 0, 1, 2), digits, num_classes=10)
