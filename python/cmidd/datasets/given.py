"""Images and labels as users and files give them, brought to the form that they are kept in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

_CHANNELS = (1, 3)  # grey, RGB


def labels_as_int64(labels: Tensor | Array, num_classes: int) -> Tensor:
    """`labels` as (N,) int64, or an error that says which one is not from 0 to num_classes - 1."""
    is_integer = (
        labels.dtype.kind in "iu"
        if isinstance(labels, np.ndarray)
        else not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    )
    if not is_integer:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"labels must be one number an image, (N,), got {tuple(labels.shape)}")
    if isinstance(labels, np.ndarray):
        classes = torch.from_numpy(labels.astype(np.int64))
    else:
        classes = labels.to(torch.int64)
    outside = (classes < 0) | (classes >= num_classes)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, got {int(classes[row])} at row {row}"
        )
    return classes


def channels_first(images: Tensor | Array) -> Tensor:
    """(N, channels, H, W) of any layout that `from_arrays` takes."""
    if images.dtype not in (np.uint8, torch.uint8):
        scale = "scale to 0..255 and " if "float" in str(images.dtype) else ""
        raise TypeError(f"images must be uint8, got {images.dtype}; {scale}convert to uint8")
    if isinstance(images, np.ndarray):
        # torch wants memory that it may write to.
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    else:
        pixels = images
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[1] not in _CHANNELS and pixels.shape[3] in _CHANNELS:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in _CHANNELS or 0 in pixels.shape[1:]:
        raise ValueError(
            "images must be (N, H, W), (N, channels, H, W) or (N, H, W, channels) with 1 or 3 "
            f"channels, got {tuple(images.shape)}"
        )
    return pixels.contiguous()
