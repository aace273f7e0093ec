"""Images resampled so that gradients have the same bits every time, on a GPU too.

There torch's own gradients of it add up by atomic operations, in an order that varies.

**Along an affine grid**, as `scale` and `rotate` of augmentation do it. With sides from -1 to 1 the
image has at (x, y) what it had at (xx x + xy y, yx x + yy y), zero outside of it. In pixels from
the centre, where the width is W and the height H, that is

    in = M out,    M = ((xx, xy W / H), (yx H / W, yy))

and a pixel q has the weight (1 - |in_x - q_x|) (1 - |in_y - q_y|), where neither is negative. Each
pixel gathers the gradients of the outputs that it is in, which are near M^-1 q.

**To another size**, linearly along each side: products with two matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmikernels.changes.operations import REACH


def check_reach(name: str, growth: float) -> None:
    """Raise unless a pixel is in outputs less than 2 from it; M^-1 makes at most `growth` of 1."""
    if not growth < REACH / 2:
        raise ValueError(
            f"augmentation: {name} spreads a pixel of images of this shape over {growth:.3g} to "
            f"each side, and on a GPU it has to be less than {REACH // 2}; leave {name} out"
        )


def resample(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    """Images (n, ch, H, W) resampled; the numbers are (n, 1, 1, 1)."""
    if images.device.type != "cpu":
        out: Tensor = _Resampled.apply(images, xx, xy, yx, yy)  # type: ignore[no-untyped-call]
        return out
    still = torch.zeros_like(xx)
    matrix = torch.cat([xx, xy, still, yx, yy, still], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class _Resampled(torch.autograd.Function):
    """The same with a gradient that gathers, and whose own gradient is this again."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, *numbers: Tensor) -> Tensor:
        ctx.save_for_backward(*numbers)
        height, width = images.shape[2:]
        down, across = _from_centre(height, images)[:, None], _from_centre(width, images)
        xx, xy, yx, yy = (each[:, 0] for each in numbers)  # (n, 1, 1)
        x = xx * across * (2 / width) + xy * down * (2 / height)
        y = yx * across * (2 / width) + yy * down * (2 / height)
        return F.grid_sample(images, torch.stack([x, y], 3), align_corners=False)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        of_images: Tensor = _Gathered.apply(  # type: ignore[no-untyped-call]
            incoming, *ctx.saved_tensors
        )
        return of_images, None, None, None, None


class _Gathered(torch.autograd.Function):
    """The gradient of `_Resampled`, which is linear in what comes in."""

    @staticmethod
    def forward(ctx: Any, incoming: Tensor, *numbers: Tensor) -> Tensor:
        ctx.save_for_backward(*numbers)
        n, channels, height, width = incoming.shape
        down, across = _from_centre(height, incoming)[:, None], _from_centre(width, incoming)
        xx, xy, yx, yy = numbers  # (n, 1, 1, 1)
        xy, yx = xy * (width / height), yx * (height / width)
        determinant = xx * yy - xy * yx
        # Outputs near M^-1 q, (n, REACH, H, W), as places from the first row and column.
        near = torch.arange(REACH, device=incoming.device)[:, None, None] + (1 - REACH // 2)
        rows = ((xx * down - yx * across) / determinant + (height - 1) / 2).floor() + near
        columns = ((yy * across - xy * down) / determinant + (width - 1) / 2).floor() + near
        rows, columns = rows[:, :, None], columns[:, None]  # all pairs, (n, REACH, REACH, H, W)
        i, j = rows - (height - 1) / 2, columns - (width - 1) / 2
        xx, xy, yx, yy = (each[:, None] for each in (xx, xy, yx, yy))
        share = (1 - (xx * j + xy * i - across).abs()).clamp(min=0)
        share = share * (1 - (yx * j + yy * i - down).abs()).clamp(min=0)
        share = share * ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width))
        place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
        places = place.long().view(n, 1, -1).expand(-1, channels, -1)
        found = incoming.flatten(2).gather(2, places).view(n, channels, REACH**2, height, width)
        return (found * share.view(n, 1, REACH**2, height, width)).sum(2)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        again: Tensor = _Resampled.apply(  # type: ignore[no-untyped-call]
            incoming, *ctx.saved_tensors
        )
        return again, None, None, None, None


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images (n, ch, ...) made larger, linearly along each side."""
    if images.device.type == "cpu":
        return F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
    rows, columns = (
        _linear(*sides, images) for sides in zip(images.shape[2:], (height, width), strict=True)
    )
    return rows @ images @ columns.mT


def _linear(side: int, larger: int, like: Tensor) -> Tensor:
    """`(larger, side)` shares of the pixels of a side in those of a larger one."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    pixels = torch.arange(larger, device=like.device, dtype=dtype)
    places = ((pixels[:, None] + 0.5) * (side / larger) - 0.5).clamp(0, side - 1)
    return (1 - (places - pixels[:side]).abs()).clamp(min=0).to(like.dtype)


def _from_centre(side: int, like: Tensor) -> Tensor:
    """Where the pixels of a side are, from its centre."""
    return torch.arange(side, device=like.device, dtype=like.dtype) - (side - 1) / 2
