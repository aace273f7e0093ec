"""Real images to distil, by name.

A new dataset is one loader, `(name, root, decoding) -> Dataset`, one line of the table below, and
one of `options/names.py`, which is its help.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cmidd.datasets import arrays, cifar, digits, folders, hub, idx, svhn
from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import DatasetNotFound
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.pixels import ImageShape
from cmidd.datasets.streamed import KEEP_DECODED
from cmidd.options.names import DATASETS, dataset_key

__all__ = ["DATASETS", "Dataset", "DatasetNotFound", "ImageSet", "ImageShape", "load_dataset"]

_LOADERS: dict[str, Callable[[str, Path, Decoding], Dataset]] = {
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


def load_dataset(
    name: str,
    root: Path | str = "data",
    *,
    size: int | None = None,
    keep_decoded: int = KEEP_DECODED,
    on_demand: bool = False,
) -> Dataset:
    """Load a dataset, into memory unless it is of pictures that are too many.

    Pictures that take more memory than `keep_decoded` stay encoded; those whose rows are asked for
    are decoded then, and as many are kept as take that much.

    Args:
        name: one of `DATASETS`, such as `cifar10` or `folder:flowers`.
        root: the folder that datasets with a name of their own are in.
        size: the height and width to make images of, for datasets of image files: the middle of
            each is cut out and scaled.
        keep_decoded: bytes of decoded pictures to keep, of the training and of the test images
            each; one amount for both, where some are held out.
        on_demand: let pictures stay encoded even if they could be kept, so that only those that
            are used are decoded.

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
    if keep_decoded < 0:
        raise ValueError(f"keep_decoded: expected a number of bytes, got {keep_decoded}")
    decoding = Decoding(size, keep_decoded, not on_demand)
    return _LOADERS[known](name, Path(root).expanduser(), decoding)
