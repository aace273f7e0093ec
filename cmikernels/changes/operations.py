"""Images (n, channels, H, W) of which each is changed by its own operation and numbers.

    COLOR   c (s (x - m) + m - M) + M + b  with m the mean of x over channels, M that over all of
            it; numbers: brightness b, saturation s, contrast c
    CROP    shifted by whole pixels, zeros come in; numbers: row and column of the first one
    CUTOUT  zero in a rectangle; numbers: top, bottom, left, right
    FLIP    left and right change places where the number is not 0
    AFFINE  at (x, y) what was at (xx x + xy y, yx x + yy y), sides from -1 to 1, zero outside;
            numbers: xx, xy, yx, yy

All are linear but for the brightness. So the gradient is the transpose, and its gradient the
operation without brightness. The transpose of a shift is the shift back; in that of AFFINE each
pixel gathers the outputs that it is in, which are less than REACH / 2 from where the inverse takes
it; COLOR, CUTOUT and FLIP are their own. Nothing is added by atomic operations: bits repeat.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from cmikernels.backends import triton

COLOR, CROP, CUTOUT, FLIP, AFFINE = range(5)
NUMBERS = 4
"""Of each image; fewer are filled up."""
REACH = 4
FORWARD, TRANSPOSED, LINEAR = range(3)  # with brightness; the gradient; without brightness
_SERVED = (torch.float32, torch.float64)


def serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether such images are the kernel's: those on a GPU that Triton serves.

    Those on `meta`, on which operations are counted, go the way of a GPU's.
    """
    if dtype not in _SERVED or device.type == "cpu":
        return False
    return device.type == "meta" or triton.obstacle(device.type) is None


def change(images: Tensor, codes: Tensor, numbers: Tensor, *, colours: bool) -> Tensor:
    """The changed images, differentiable any number of times.

    Args:
        images: float32 or float64.
        codes: `(n,)` int32, an operation for each.
        numbers: `(n, NUMBERS)` in the dtype of the images.
        colours: whether COLOR is among the codes.
    """
    out: Tensor = _Changed.apply(images, codes, numbers, colours, FORWARD)  # type: ignore[no-untyped-call]
    return out


def _run(kind: int, images: Tensor, *rest: Tensor | None) -> None:
    """One launch. Tensors without memory are left as they are."""
    if not images.is_meta:
        importlib.import_module("cmikernels.changes.kernel").run(kind, images, *rest)


class _Changed(torch.autograd.Function):
    """One kind of pass, whose gradient is another."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, codes: Tensor, numbers: Tensor, colours: bool, kind: int
    ) -> Tensor:
        ctx.save_for_backward(codes, numbers)
        ctx.colours, ctx.kind = colours, kind
        images = images.contiguous()
        means = images.mean((1, 2, 3)) if colours else None
        out = torch.empty_like(images)
        _run(kind, images, codes, numbers, means, out)
        return out

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        kind = LINEAR if ctx.kind == TRANSPOSED else TRANSPOSED
        of_images: Tensor = _Changed.apply(  # type: ignore[no-untyped-call]
            incoming, *ctx.saved_tensors, ctx.colours, kind
        )
        return of_images, None, None, None, None
