"""Real images to distil, by name.

A new dataset is one loader, `(name, root, size) -> Dataset`, one line of the table below, and one
of `options/names.py`, which is its help.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmidd.datasets import arrays, cifar, digits, folders, hub, idx, svhn
from cmidd.datasets.files import DatasetNotFound
from cmidd.datasets.images import Dataset, ImageSet, ImageShape
from cmidd.options.names import DATASETS, dataset_key

__all__ = ["DATASETS", "Dataset", "DatasetNotFound", "ImageSet", "ImageShape", "load_dataset"]

_LOADERS: dict[str, Callable[[str, Path, int | None], Dataset]] = {
    "digits": digits.load,
    "cifar10": cifar.load,
    "cifar100": cifar.load,
    "svhn": svhn.load,
    "mnist": idx.load,
    "fashionmnist": idx.load,
    "tinyimagenet": folders.load_tinyimagenet,
    "imagenet": folders.load_imagenet,
    "folder:PATH": folders.load,
    "arrays:PATH.npz": arrays.load,
    "hub:NAME": hub.load,
}


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

    Example:
        >>> data = cmidd.load_dataset("digits")
        >>> data.num_classes, data.train.images.shape
        (10, torch.Size([1438, 1, 8, 8]))

    """
    known = dataset_key(name)
    if size is not None and not DATASETS[known].resizes:
        resizing = ", ".join(other for other, about in DATASETS.items() if about.resizes)
        raise ValueError(f"size is for {resizing}; the images of {name} are of one size")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return _LOADERS[known](name, Path(root).expanduser(), size)
