"""What augmentation can do to images: the operations by name, and how far they go.

Each makes parameters of its own uniform numbers, one set for each image, and changes images by
them, differentiably. `augment.py` says what they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from cmidd.resampling import resample


@dataclass(frozen=True)
class Amounts:
    """How far the operations go; the defaults are the published ones."""

    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125  # of a side
    cutout: float = 0.5  # of a side
    flip: float = 0.5  # probability
    scale: float = 1.2
    rotate: float = 15.0  # degrees
    zoom: float = 0.08  # least share of the area


PUBLISHED_AMOUNTS = Amounts()


class Operation(NamedTuple):
    """What `parameters` makes of `numbers` uniform numbers a group, `apply` does to images.

    `parameters(u, amounts, height, width)` has `u` (numbers, n) and returns columns (n,); `apply`
    is called with images (n, ch, H, W) and those columns as (n, 1, 1, 1).
    """

    numbers: int
    parameters: Callable[[Tensor, Amounts, int, int], list[Tensor]]
    apply: Callable[..., Tensor]


def whole(u: Tensor, count: int) -> Tensor:
    """Uniform u in [0, 1) as whole numbers in [0, count)."""
    return (u * count).floor()  # float64 u is 1 - 2^-53 at most: no product rounds up to count


def _share(side: int, share: float) -> int:
    """Pixels of a share of a side, halves rounded up."""
    return int(side * share + 0.5)


def _color_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    return [(u[0] - 0.5) * amounts.brightness, u[1] * amounts.saturation, u[2] + amounts.contrast]


def _color(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    images = images + brightness
    mean = images.mean(1, keepdim=True)
    images = (images - mean) * saturation + mean
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def _crop_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    most = [_share(side, amounts.crop) for side in (height, width)]
    return [whole(u[i], 2 * most[i] + 1) - most[i] for i in range(2)]


def _crop(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    _, channels, height, width = images.shape
    row = torch.arange(height, device=images.device)[:, None] + down.long()  # (n, 1, H, 1)
    column = torch.arange(width, device=images.device) + right.long()  # (n, 1, 1, W)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)  # (n, 1, H, W)
    source = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(2)
    shifted = images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)
    return shifted.masked_fill(~inside, 0.0)


def _cutout_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    edges = []
    for i, side in enumerate((height, width)):
        length = _share(side, amounts.cutout)
        # The centre of an even length lies between pixels, where a side has one place more.
        first = whole(u[i], side + 1 - length % 2) - length // 2
        edges += [first, first + length]
    return edges


def _cutout(images: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return images.masked_fill(inside(images.shape[2:], top, bottom, left, right), 0.0)


def inside(size: Sequence[int], top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Which pixels (n, 1, H, W) are in rectangles, whose edges are (n, 1, 1, 1) each."""
    row, column = (torch.arange(side, device=top.device) for side in size)
    row = row[:, None]
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _flip_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    return [u[0] < amounts.flip]


def _flip(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped.bool(), images.flip(3), images)


def _scale_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    least = 1 / amounts.scale
    across, down = least + u * (amounts.scale - least)
    zero = torch.zeros_like(across)
    return [across, zero, zero, down]


def _rotate_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    angle = (2 * u[0] - 1) * math.radians(amounts.rotate)
    return [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]


def _zoom_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    area = amounts.zoom + u[0] * (1 - amounts.zoom)
    most = torch.clamp(-area.log(), max=math.log(4 / 3))  # beyond that, the part does not fit
    skew = ((2 * u[1] - 1) * most / 2).exp()
    sides = []
    for share, place, side in zip(
        (area.sqrt() / skew, area.sqrt() * skew), u[2:], (height, width), strict=True
    ):
        length = (share * side).round().clamp(1, side)
        sides += [(place * (side - length + 1)).floor(), length]
    return sides


def _zoom(images: Tensor, top: Tensor, high: Tensor, left: Tensor, wide: Tensor) -> Tensor:
    """The part of `high` rows from `top` on and `wide` columns from `left` on, as a whole image."""
    rows = _stretched(top, high, images.shape[2])
    columns = _stretched(left, wide, images.shape[3])
    return rows @ images @ columns.mT


def _stretched(first: Tensor, length: Tensor, side: int) -> Tensor:
    """Weights `(n, 1, side, side)` that make a whole side, linearly, of some of its pixels."""
    pixels = torch.arange(side, device=first.device, dtype=first.dtype)
    of_part = ((pixels[:, None] + 0.5) * (length / side) - 0.5).clamp(min=0)
    return (1 - (first + of_part.minimum(length - 1) - pixels).abs()).clamp(min=0)


def _shuffle_parameters(u: Tensor, amounts: Amounts, height: int, width: int) -> list[Tensor]:
    return [u[0] < 0.5, u[1] < 0.5]


def _shuffle(images: Tensor, upper: Tensor, left: Tensor) -> Tensor:
    """The upper half below the lower one, the left half to the right of the other one."""
    for moves, axis in ((upper, 2), (left, 3)):
        moved = images.roll(-(images.shape[axis] // 2), axis)
        images = torch.where(moves.bool(), moved, images)
    return images


def growth(name: str, amounts: Amounts, height: int, width: int) -> float:
    """How far a pixel that an operation resamples may be spread along a side; 0 of others."""
    if name == "scale":
        return max(amounts.scale, 1 / amounts.scale)
    if name == "rotate":
        slant = math.sin(min(math.radians(amounts.rotate), math.pi / 2))
        return 1 + slant * max(height / width, width / height)
    return 0.0


OPERATIONS: dict[str, Operation] = {
    "color": Operation(3, _color_parameters, _color),
    "crop": Operation(2, _crop_parameters, _crop),
    "cutout": Operation(2, _cutout_parameters, _cutout),
    "flip": Operation(1, _flip_parameters, _flip),
    "scale": Operation(2, _scale_parameters, resample),
    "rotate": Operation(1, _rotate_parameters, resample),
    "zoom": Operation(4, _zoom_parameters, _zoom),
    "shuffle": Operation(2, _shuffle_parameters, _shuffle),
}

# Where the numbers of each operation end: every one has its own columns, whatever the strategy.
ENDS = dict(zip(OPERATIONS, accumulate(o.numbers for o in OPERATIONS.values()), strict=True))
NUM_NUMBERS = ENDS["rotate"]
"""Uniform numbers that a group has whatever the strategy: those of all operations up to rotate."""
LATER = tuple(name for name, end in ENDS.items() if end > NUM_NUMBERS)
"""Operations whose numbers are drawn after those, one operation after another, up to the last that
is named: what is drawn for an operation does not depend on those after it."""
