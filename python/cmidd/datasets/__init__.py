"""Real images to distil, by name.

A new dataset is one loader, `(name, root, size) -> Dataset`, and one line of the table below.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from cmidd.datasets import arrays, cifar, digits, folders, hub, idx, svhn
from cmidd.datasets.files import DatasetNotFound
from cmidd.datasets.images import Dataset, ImageSet, ImageShape

__all__ = ["DATASETS", "Dataset", "DatasetNotFound", "ImageSet", "ImageShape", "load_dataset"]


class _Source(NamedTuple):
    load: Callable[[str, Path, int | None], Dataset]
    about: str
    resizes: bool = False  # whether `size` means something to it


# A name is a word, or a word, a colon and what the user fills in.
_SOURCES = {
    "digits": _Source(digits.load, "8 x 8 grey digits that come with scikit-learn; offline"),
    "cifar10": _Source(cifar.load, "CIFAR-10, binary or Python version"),
    "cifar100": _Source(cifar.load, "CIFAR-100, binary or Python version"),
    "svhn": _Source(svhn.load, "SVHN, cropped digits"),
    "mnist": _Source(idx.load, "MNIST, packed by gzip or not"),
    "fashionmnist": _Source(idx.load, "FashionMNIST, packed by gzip or not"),
    "tinyimagenet": _Source(folders.load_tinyimagenet, "Tiny-ImageNet, 64 x 64", resizes=True),
    "imagenet": _Source(folders.load_imagenet, "ImageNet, made to size", resizes=True),
    "folder:PATH": _Source(
        folders.load,
        "image files in train/<class>/ and test/<class>/ or val/<class>/",
        resizes=True,
    ),
    "arrays:PATH.npz": _Source(
        arrays.load,
        "arrays train_images and test_images, uint8 (N, H, W) or (N, H, W, C) with C 1 or 3, "
        "train_labels and test_labels, integers (N,) from 0",
    ),
    "hub:NAME": _Source(
        hub.load, "a set of the Hugging Face hub, or a folder that save_to_disk wrote", resizes=True
    ),
}

DATASETS = {name: source.about for name, source in _SOURCES.items()}


def load_dataset(name: str, root: Path | str = "data", *, size: int | None = None) -> Dataset:
    """Load a dataset into memory.

    Args:
        name: one of `DATASETS`, such as `cifar10` or `folder:flowers`.
        root: the folder that datasets with a name of their own are in.
        size: the height and width to make images of, for datasets of image files: the middle of
            each is cut out and scaled.

    Raises:
        DatasetNotFound: it is not on disk; the message says where it should be and how to get it.
        ValueError: the name or the size is not one, or a file is broken, which the message names.

    """
    source = _source(name)
    if size is not None and not source.resizes:
        resizing = ", ".join(known for known, other in _SOURCES.items() if other.resizes)
        raise ValueError(f"size is for {resizing}; the images of {name} are of one size")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return source.load(name, Path(root).expanduser(), size)


def _source(name: str) -> _Source:
    word, _, argument = name.partition(":")
    for known, source in _SOURCES.items():
        known_word, _, placeholder = known.partition(":")
        if word == known_word and bool(argument) == bool(placeholder):
            return source
    words = {known.partition(":")[0]: known for known in _SOURCES}
    close = get_close_matches(word.lower(), words, n=1, cutoff=0.7)
    meant = f"; did you mean {words[close[0]]}?" if close else ""
    raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}; got {name!r}{meant}")
