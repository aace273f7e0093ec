"""Trees of image files: `train/<class>/**` and `test/<class>/**` or `val/<class>/**`.

Tiny-ImageNet keeps `train/<class>/images/`, and its validation images in one folder with a table

    val/val_annotations.txt: file name, class and more, separated by tabs
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import DatasetNotFound, find, reading
from cmidd.datasets.given import Array
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.pictures import SUFFIXES, PictureFiles, common_shape
from cmidd.datasets.pixels import ImageShape
from cmidd.datasets.statistics import channel_statistics

_TINY_SIZE = 64


class _Listing(NamedTuple):
    pictures: PictureFiles
    labels: Array  # (N,)


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read the tree that `folder:PATH` names."""
    folder = find(name, [Path(name.partition(":")[2]).expanduser()])
    train_folder = _part(folder, "training", "train")
    test_folder = _part(folder, "test", "test", "val")
    class_names = _classes(train_folder)
    listings = _by_class(train_folder, class_names), _by_class(test_folder, class_names)
    shape = common_shape([listing.pictures for listing in listings], decoding.size)
    train, test = _image_sets(listings, len(class_names), shape, decoding)
    mean, std = channel_statistics(train.source)
    return Dataset(name, train, test, class_names, mean, std, mirror=True)


def load_imagenet(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read `train/<wnid>` and `val/<wnid>` of ImageNet, whose images are of many sizes."""
    train_folder, class_names, shape = listed(name, root, decoding.size)
    test_folder = find(name, [train_folder.with_name("val")])
    listings = _by_class(train_folder, class_names), _by_class(test_folder, class_names)
    train, test = _image_sets(listings, len(class_names), shape, decoding)
    return Dataset.known(name, train, test, class_names)


def load_tinyimagenet(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read `tiny-imagenet-200/`; its validation images are the test set."""
    train_folder, class_names, shape = listed(name, root, decoding.size)
    val_folder = train_folder.with_name("val")
    listings = _by_class(train_folder, class_names), _annotated(val_folder, class_names)
    train, test = _image_sets(listings, len(class_names), shape, decoding)
    return Dataset.known(name, train, test, class_names)


def listed(name: str, root: Path, size: int | None) -> tuple[Path, tuple[str, ...], ImageShape]:
    """Training folder, classes and shape of imagenet or tinyimagenet, of which no image is read."""
    if name == "imagenet" and size is None:
        raise ValueError("imagenet has images of many sizes: give the size to make them, say 64")
    if name == "imagenet":
        folder = find(name, [root / "imagenet" / "train", root / "train"])
    else:
        folder = find(name, [find(name, [root / "tiny-imagenet-200"]) / "train"])
    side = size or _TINY_SIZE
    return folder, _classes(folder), ImageShape(3, side, side)


def _part(folder: Path, what: str, *names: str) -> Path:
    """The first folder of these names in a folder that is there."""
    places = [folder / name for name in names]
    for place in places:
        if place.is_dir():
            return place
    raise DatasetNotFound(
        f"{folder} has no {what} images: put a folder of them for each class into "
        + " or ".join(map(str, places))
    )


def _image_sets(
    listings: tuple[_Listing, _Listing], num_classes: int, shape: ImageShape, decoding: Decoding
) -> tuple[ImageSet, ImageSet]:
    """The training set and the test set."""
    train, test = (
        ImageSet.from_arrays(decoding(listing.pictures, shape, title), listing.labels, num_classes)
        for listing, title in zip(listings, ("train", "test"), strict=True)
    )
    return train, test


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if is_class_folder(entry)))
    if not names:
        raise ValueError(f"{folder}: has no class folders")
    return names


def is_class_folder(entry: Path) -> bool:
    """Whether an entry is the folder of a class; hidden ones are none."""
    return entry.is_dir() and not entry.name.startswith(".")


def is_image(entry: Path) -> bool:
    """Whether an entry of the folder of a class is a picture; hidden ones are none."""
    return entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")


def _by_class(folder: Path, class_names: tuple[str, ...]) -> _Listing:
    """The pictures of each class in turn, by name, and their labels."""
    if found := set(_classes(folder)) ^ set(class_names):
        raise ValueError(
            f"{folder}: its class folders must be those of train; only in one of the two are "
            + ", ".join(sorted(found))
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        class_folder = folder / class_name
        files = sorted(file for file in class_folder.rglob("*") if is_image(file))
        if not files:
            raise ValueError(f"{class_folder}: has no images ({', '.join(SUFFIXES)})")
        paths += map(str, files)
        labels += [label] * len(files)
    return _Listing(PictureFiles(paths), np.array(labels))


def _annotated(folder: Path, class_names: tuple[str, ...]) -> _Listing:
    """The pictures that `val_annotations.txt` lists, and their labels."""
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    table = find("tinyimagenet", [folder / "val_annotations.txt"])
    paths, labels = [], []
    with reading(table):
        for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
            file, _, rest = line.partition("\t")
            class_name = rest.partition("\t")[0]
            if class_name not in label_of:
                raise ValueError(f"line {number} names class {class_name!r}, which train has not")
            paths.append(str(folder / "images" / file))
            labels.append(label_of[class_name])
        if not paths:
            raise ValueError("lists no images")
    return _Listing(PictureFiles(paths), np.array(labels))
