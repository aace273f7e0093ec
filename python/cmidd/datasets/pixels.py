"""The shape of images, their pixels in [0, 1], and the normalised numbers that networks see."""

from __future__ import annotations

import functools
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


def normalised(
    pixels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(pixel / 255 - mean) / std of uint8 pixels (N, channels, H, W), alike on every device.

    Args:
        pixels: from 0 to 255.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel, of pixels in [0, 1].
        dtype: of the numbers, which are float32 at least.
    """
    numbers = pixels.to(torch.promote_types(dtype, torch.float32))
    # By a plain number a GPU multiplies with its rounded reciprocal.
    numbers.div_(_white(numbers.device, numbers.dtype))
    return normalise(numbers, mean, std)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels of normalised images, which may lie outside of [0, 1]."""
    centre, scale = _of_channels(images, mean, std)
    return images * scale + centre


def _of_channels(
    images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Mean and deviation as `images` (N, channels, H, W) take them, (channels, 1, 1) each."""
    if images.ndim != 4 or images.shape[1] != len(mean):
        raise ValueError(
            f"images must be (N, {len(mean)}, height, width), got {tuple(images.shape)}"
        )
    return _on(images.device, images.dtype, tuple(mean), tuple(std))


# Kept, as each is a copy for which the CPU waits for a GPU; and not of inference mode, whose
# tensors autograd could not use later.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _on(
    device: torch.device, dtype: torch.dtype, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    both = torch.tensor((mean, std), dtype=dtype, device=device)
    return both[0, :, None, None], both[1, :, None, None]


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _white(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(255, dtype=dtype, device=device)
