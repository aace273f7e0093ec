"""Synthetic sets whose images are kept as pixels, batch by batch, as `cmidd recover` makes them.

`pixels` (batches, n, channels, height, width) uint8, `labels` (batches, n) int64, -1 where a batch
has fewer than n images; `trained` (batches,) uint8 says which are done. The set has its images
class by class.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets.pixels import normalised
from cmidd.datasets.streamed import Pixels, StreamedImages
from cmidd.storage.growing_file import CRC_OF, MARKS, check_piece
from cmidd.storage.tensor_file import FileError

NOTHING = -1
"""The label of a place without an image."""


def as_items(pixels: Tensor, labels: Tensor, size: int) -> dict[str, Tensor]:
    """What the file keeps of a batch that has room for `size` images."""
    places = pixels.new_zeros(size, *pixels.shape[1:])
    classes = torch.full((size,), NOTHING)
    places[: len(pixels)], classes[: len(labels)] = pixels, labels
    return {"pixels": places, "labels": classes}


def unpacked(
    tensors: Mapping[str, Tensor], record: Mapping[str, Any], path: Path
) -> tuple[StreamedImages, Tensor]:
    """The normalised images of a file's tensors, which stay mapped, and labels; checked."""
    empty = torch.empty(0)
    pixels, labels = tensors["pixels"], tensors.get("labels", empty)
    marks = tensors.get(MARKS, empty)
    if (
        (pixels.dtype, labels.dtype, marks.dtype) != (torch.uint8, torch.int64, torch.uint8)
        or pixels.ndim != 5
        or list(pixels.shape[2:]) != record["shape"]
        or pixels.shape[:2] != labels.shape
        or pixels.shape[:1] != marks.shape
    ):
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        raise FileError(
            f"{path}: expected uint8 pixels (batches, n, ...) of images {record['shape']}, int64 "
            f"labels (batches, n) and uint8 trained (batches,), got {found}"
        )
    if not (marks == 1).all():
        raise FileError(f"{path}: only {int((marks == 1).sum())} of {len(marks)} batches are made")
    for name, tensor in (("pixels", pixels), ("labels", labels)):
        crcs = tensors.get(CRC_OF + name, empty)
        if crcs.shape != marks.shape:
            raise FileError(f"{path}: expected a checksum of each batch's {name}")
        for batch, crc in zip(tensor, crcs, strict=True):
            check_piece(path, name, batch, crc)
    as_input = partial(normalised, mean=record["mean"], std=record["std"])
    every = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    if not as_input(every.expand(-1, pixels.shape[2], 1, 1)).isfinite().all():
        raise FileError(f"{path}: expected finite images, got NaN or Inf among them")
    classes = labels.flatten()
    (there,) = (classes != NOTHING).nonzero(as_tuple=True)
    classes, order = classes[there].sort(stable=True)
    every_place = StreamedImages.of(Pixels(pixels.flatten(0, 1)), labels.numel())
    return every_place.of_rows(there[order]).seen_by(as_input), classes
