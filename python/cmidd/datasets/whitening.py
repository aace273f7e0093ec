"""ZCA whitening: images with hardly any correlation between pixels, which still look like images.

    y = (x - m) W,    W = U (S + eps)^-1/2 U^T,    x = y W^-1 + m

x is a row of the D = channels * height * width numbers of a normalised image, m the mean of the
training images and U S U^T their covariance. It is counted in whole numbers, so neither batches nor
threads change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cmidd.datasets.streamed import Images, one_after_another
from cmidd.progress import progress

EPS = 0.1  # of pixels in [0, 1], as published
_GREY = 128  # pixels less it are within 128 of 0
_BATCH = 1024  # 1024 * 128^2 = 2^24: float32 adds as many of their products without rounding
_MAX_NUMBERS = 4096  # numbers of an image: 64 x 64 grey ones, 36 x 36 in colour


@dataclass(frozen=True, eq=False)
class Whitening:
    """A whitening and its inverse.

    Attributes:
        mean: (D,) float32, of the training images.
        matrix: (D, D) float32, symmetric and positive definite.
        eps: added to the variances; directions of less variance are hardly amplified further.

    """

    mean: Tensor
    matrix: Tensor
    eps: float

    def __post_init__(self) -> None:
        found = [(t.dtype, tuple(t.shape)) for t in (self.mean, self.matrix)]
        size = self.mean.numel()
        if found != [(torch.float32, (size,)), (torch.float32, (size, size))]:
            raise ValueError(f"whitening: expected float32 of (D,) and (D, D), got {found}")
        if not (self.mean.isfinite().all() and self.matrix.isfinite().all()):
            raise ValueError("whitening: expected finite numbers, got NaN or Inf among them")
        if not torch.equal(self.matrix, self.matrix.T):
            raise ValueError("whitening: expected a symmetric matrix, got another")
        _check_eps(self.eps)

    @classmethod
    def of(
        cls, images: Images, mean: Sequence[float], std: Sequence[float], eps: float
    ) -> Whitening:
        """What whitens images like these.

        Args:
            images: (N, channels, height, width) uint8.
            mean: of each channel, of pixels in [0, 1].
            std: of each channel, of pixels in [0, 1].
            eps: in units of normalised variance.

        """
        _check_eps(eps)
        size = math.prod(images.shape[1:])
        if size > _MAX_NUMBERS:
            raise ValueError(
                f"zca: expected images of at most {_MAX_NUMBERS:,} numbers, got {size:,}: it takes "
                f"time in proportion to {size:,}^3 and a matrix of {size**2 * 4 / 1e9:.1f} GB in "
                "every set; go without, or with smaller images"
            )
        total, products = _sums(images)
        count, area = len(images), math.prod(images.shape[2:])
        # In this order the variance of a pixel that never changes is 0 without rounding.
        covariance = products.mul_(count).sub_(torch.outer(total, total)).div_(count**2)
        of_channels = torch.tensor((mean, std), dtype=torch.float64)
        centre, scale = of_channels.repeat_interleave(area, dim=1)  # (D,) each
        variances, basis = torch.linalg.eigh(covariance.div_(torch.outer(255 * scale, 255 * scale)))
        matrix = (basis * (variances.clamp_min(0) + eps).rsqrt()) @ basis.T
        middle = ((total / count + _GREY) / 255 - centre) / scale
        return cls(middle.float(), ((matrix + matrix.T) / 2).float(), eps)

    def apply(self, images: Tensor) -> Tensor:
        """Whitened images, of normalised ones (N, channels, height, width)."""
        flat = self._flat(images)
        key = images.device, images.dtype
        if key not in self._placed:
            self._placed[key] = self.mean.to(images), self.matrix.to(images)
        mean, matrix = self._placed[key]
        return ((flat - mean) @ matrix).reshape(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        """Normalised images, of whitened ones (N, channels, height, width)."""
        flat = self._flat(images).double()
        unwhitened = torch.cholesky_solve(flat.T, self._factor.to(images.device)).T
        return (unwhitened + self.mean.to(unwhitened)).to(images.dtype).reshape(images.shape)

    def _flat(self, images: Tensor) -> Tensor:
        if math.prod(images.shape[1:]) != len(self.mean):
            raise ValueError(
                f"images must have {len(self.mean)} numbers each, as the whitening has, got "
                f"{tuple(images.shape)}"
            )
        return images.flatten(1)

    @cached_property
    def _placed(self) -> dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]]:
        """Mean and matrix where they were used: the loop whitens real images in every iteration."""
        return {}

    @cached_property
    def _factor(self) -> Tensor:
        """Of Cholesky, of the matrix, (D, D) float64."""
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(self.matrix.double())
        if failed:
            raise ValueError("whitening: expected a positive definite matrix, got another")
        return factor


def _check_eps(eps: float) -> None:
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise ValueError(f"zca: expected an eps above 0, got {eps!r}")


def _sums(images: Images) -> tuple[Tensor, Tensor]:
    """The sum of all images less grey, and of their outer products, (D,) and (D, D) float64."""
    size = math.prod(images.shape[1:])
    total = torch.zeros(size, dtype=torch.float64)
    products = torch.zeros(size, size, dtype=torch.float64)
    batches = torch.split(torch.arange(len(images)), _BATCH)
    told = progress(batches, desc="covariance", unit="batch", leave=False)
    for batch in one_after_another(images, told):
        flat = batch.flatten(1).float() - _GREY
        total += flat.sum(0)
        products += flat.T @ flat
    return total, products
