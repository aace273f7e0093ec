"""Folders of pictures, one for each class, as SRe2L, RDED and `cmidd export --png` write them.

    new003/class003_id000.jpg    00003/class00003_id00000.jpg    003_<class>/0000.png

A folder is named by its class, or begins with its number. Hidden files and folders are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets.folders import is_class_folder, is_image
from cmidd.datasets.pictures import SUFFIXES, Picture, common_shape, decode
from cmidd.datasets.pixels import ImageShape


def read_folder(folder: Path, about: Mapping[str, Any], *, resize: bool) -> tuple[Tensor, Tensor]:
    """Images as pixels from 0 to 1, and labels.

    Args:
        folder: with the folders of classes.
        about: the dataset, as the record of a set has it.
        resize: make pictures of any size to that of the dataset.
    """
    pictures, labels = [], []
    places = filter(is_class_folder, folder.iterdir() if folder.is_dir() else ())
    for place in sorted(places):
        files = sorted(filter(is_image, place.iterdir()))
        pictures += [Picture(str(file), file) for file in files]
        labels += [_class_of(place, about)] * len(files)
    if not pictures:
        raise ValueError(
            f"{folder}: expected a folder of pictures for each class ({', '.join(SUFFIXES)})"
        )
    shape, first = ImageShape(*about["shape"]), common_shape([pictures[:1]], None)
    if not resize and first[1:] != shape[1:]:
        raise ValueError(
            f"{pictures[0].name}: expected {shape.height} x {shape.width} pixels as "
            f"{about['dataset']} has them, got {first.height} x {first.width}"
        )
    rows = torch.arange(len(pictures))
    images = decode(pictures, rows, shape, resize=resize, title="pictures")
    return images.float() / 255, torch.tensor(labels)


def _class_of(place: Path, about: Mapping[str, Any]) -> int:
    names = about["class_names"]
    if place.name in names:
        return int(names.index(place.name))
    number = re.fullmatch(r"(?:new)?(\d+)(?:_.*)?", place.name, re.DOTALL)
    if number is None or int(number[1]) >= len(names):
        raise ValueError(
            f"{place}: expected a folder named by a class of {about['dataset']} or its number, "
            f"such as new003, 00003 or 003_{names[0]}"
        )
    return int(number[1])
