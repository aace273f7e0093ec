"""DM with CMI as its published loop is structured, written anew in plain torch: oracle and rival.

    loss = sum over classes of || mean phi(A_c(real)) - mean phi(A_c(synthetic)) ||^2

Everything is made where it is needed and nothing is kept: phi is a new module in every step, one
class at a time goes through it, and one backward pass, through CMI too (`cmi.py`), ends the step.
What is drawn (first weights, rows of real images, augmentation, number of the network) is what
`cmidd.methods.dm` and `CMIRegularizer` draw, so that in float64 both give the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from bench.plain.classwise import ClasswiseLoop
from cmidd.augment import Draw, Strategy
from cmidd.options.dm import DMOptions


def color(images: Tensor, u: list[float]) -> Tensor:
    """Brightness, saturation and contrast."""
    images = images + (u[0] - 0.5)
    mean = images.mean(dim=1, keepdim=True)
    images = (images - mean) * (2 * u[1]) + mean
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (u[2] + 0.5) + mean


def crop(images: Tensor, u: list[float]) -> Tensor:
    """A shift by up to an eighth of each side: a window on the images with zeros around them."""
    height, width = images.shape[2:]
    most = [int(side / 8 + 0.5) for side in (height, width)]
    top, left = (int(number * (2 * m + 1)) for number, m in zip(u, most, strict=True))
    around = F.pad(images, (most[1], most[1], most[0], most[0]))
    return around[:, :, top : top + height, left : left + width]


def cutout(images: Tensor, u: list[float]) -> Tensor:
    """Zeros in a rectangle of half of each side."""
    kept = torch.ones(images.shape[2:], dtype=images.dtype)
    spans = []
    for number, side in zip(u, images.shape[2:], strict=True):
        length = int(side / 2 + 0.5)
        first = int(number * (side + 1 - length % 2)) - length // 2
        spans.append(slice(max(first, 0), first + length))
    kept[spans[0], spans[1]] = 0
    return images * kept.to(images.device)


def flip(images: Tensor, u: list[float]) -> Tensor:
    """Left and right, every other time."""
    return images.flip(3) if u[0] < 0.5 else images


def scale(images: Tensor, u: list[float]) -> Tensor:
    """A stretch of each side."""
    across, down = (1 / 1.2 + number * (1.2 - 1 / 1.2) for number in u)
    return resampled(images, [[across, 0, 0], [0, down, 0]])


def rotate(images: Tensor, u: list[float]) -> Tensor:
    """A turn by up to 15 degrees."""
    angle = math.radians(15 * (2 * u[0] - 1))
    cos, sin = math.cos(angle), math.sin(angle)
    return resampled(images, [[cos, -sin, 0], [sin, cos, 0]])


def resampled(images: Tensor, matrix: list[list[float]]) -> Tensor:
    """Images on a grid that `matrix` moves."""
    theta = torch.tensor(matrix, dtype=images.dtype, device=images.device)
    shape = list(images.shape)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


Operation = Callable[[Tensor, list[float]], Tensor]
# Each with the columns of its numbers in a `Draw`.
DSA: dict[str, tuple[slice, Operation]] = {
    "color": (slice(0, 3), color),
    "crop": (slice(3, 5), crop),
    "cutout": (slice(5, 7), cutout),
    "flip": (slice(7, 8), flip),
    "scale": (slice(8, 10), scale),
    "rotate": (slice(10, 11), rotate),
}


def augmented(images: Tensor, strategy: Strategy, drawn: Draw, group: int) -> Tensor:
    """One class's images `(n, ch, H, W)`, changed by what was drawn for it."""
    for index in drawn.operations[group].tolist():
        columns, operation = DSA[strategy.operations[index]]
        images = operation(images, drawn.numbers[group, columns].tolist())
    return images


class PlainDM(ClasswiseLoop):
    """The step on one dataset; arguments as of `cmidd.methods.dm.DM`, and the regulariser."""

    options: DMOptions

    def step(self, images: Tensor, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of DM, weighted CMI, and the gradient of their sum."""
        images = images.detach().requires_grad_()
        with record_function("dm.network"):
            network = self.new_network(iteration).requires_grad_(False)
        with record_function("dm.real_images"):
            drawn = self.augmentation(iteration)
            real_batches = self.real_batches(iteration)
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        for c, real in enumerate(real_batches):
            with record_function("dm.real_images"):
                real = augmented(real, self.strategy, drawn, c)
            with record_function("dm.real_branch"):
                target = network.embed(real).detach().mean(dim=0)
            with record_function("dm.synthetic_branch"):
                synthetic = augmented(images[self.classes[c]], self.strategy, drawn, c)
                loss = loss + (target - network.embed(synthetic).mean(dim=0)).square().sum()
        value = torch.zeros_like(loss)
        if self.cmi is not None:
            with record_function("cmi"):
                value = self.cmi.weighted(images, self.classes, iteration)
        with record_function("backward"):  # of the synthetic branch and of CMI
            (gradient,) = torch.autograd.grad(loss + value, images)
        return loss.detach(), value.detach(), gradient
