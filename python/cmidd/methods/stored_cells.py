"""Stored images that hold cells of pixels, of methods that were published to store pixels.

A pixel x from 0 to 1 is stored as networks take it, channel by channel:

    z = (x - mean) / std,    black at -mean / std,    white at (1 - mean) / std

Cutting cells out and enlarging them is linear, so it may come before or after; the grey of 0.5 that
it may add is (0.5 - mean) / std.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.view import check_factor, view_of_cells


class StoredCells:
    """What is known of images that hold factor x factor cells each."""

    def __init__(
        self, dataset: Dataset, factor: int, method: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Refuse images and factors that leave a cell no pixels; errors name `method`."""
        if dataset.whitening is not None:
            raise ValueError(
                f"zca: expected images without whitening, whose pixels {method} clamps and cuts "
                "into cells, got whitened ones"
            )
        _, height, width = dataset.shape
        check_factor(factor, (height, width))
        self.in_one = factor**2
        """Cells of an image."""
        self.view = view_of_cells(factor, (height, width), dataset.mean, dataset.std)
        self.std_of_channels = torch.tensor(dataset.std, dtype=torch.float64)
        mean, std = torch.tensor((dataset.mean, dataset.std), dtype=torch.float64)
        self.black, self.white, self.mean, self.std = (
            number.to(device, dtype).view(-1, 1, 1)
            for number in (-mean / std, (1 - mean) / std, mean, std)
        )

    def clamped(self, images: Tensor) -> Tensor:
        """Stored images without what is darker than black or brighter than white."""
        return torch.clamp(images, self.black.to(images), self.white.to(images))

    @torch.no_grad()
    def to_pixels(self, images: Tensor) -> None:
        """Turn stored images into pixels, in place."""
        images.mul_(self.std).add_(self.mean)

    @torch.no_grad()
    def from_pixels(self, images: Tensor) -> None:
        """Turn pixels into stored images, in place."""
        images.sub_(self.mean).div_(self.std)
