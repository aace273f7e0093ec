"""The shape of images, their pixels in [0, 1], and the normalised numbers that networks see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ImageShape(NamedTuple):
    """Channels, height and width of every image of a dataset."""

    channels: int
    height: int
    width: int


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixel - mean) / std of each channel of (N, channels, H, W), in place."""
    centre, scale = _of_channels(pixels, mean, std)
    return pixels.sub_(centre).div_(scale)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels of normalised images, which may lie outside of [0, 1]."""
    centre, scale = _of_channels(images, mean, std)
    return images * scale + centre


def _of_channels(
    images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Mean and deviation as `images` (N, channels, H, W) take them, (1, channels, 1, 1) each."""
    if images.ndim != 4 or images.shape[1] != len(mean):
        raise ValueError(
            f"images must be (N, {len(mean)}, height, width), got {tuple(images.shape)}"
        )
    both = torch.tensor((mean, std), dtype=images.dtype, device=images.device)
    centre, scale = both[:, None, :, None, None]
    return centre, scale
