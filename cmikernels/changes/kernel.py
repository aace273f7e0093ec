"""The Triton kernel: a program makes some pixels of one image, in all channels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from cmikernels.backends.operations import on_device_of
from cmikernels.backends.triton.launch import launch
from cmikernels.backends.triton.plan import ceil_div, power_of_2
from cmikernels.changes import operations

COLOR = tl.constexpr(operations.COLOR)
CROP = tl.constexpr(operations.CROP)
CUTOUT = tl.constexpr(operations.CUTOUT)
FLIP = tl.constexpr(operations.FLIP)
REACH = tl.constexpr(operations.REACH)
FORWARD = tl.constexpr(operations.FORWARD)
TRANSPOSED = tl.constexpr(operations.TRANSPOSED)
_MOST_PIXELS = 256  # of a program: more would not stay in registers


def run(
    kind: int,
    images: Tensor,
    codes: Tensor,
    numbers: Tensor,
    means: Tensor | None,
    out: Tensor,
) -> None:
    """Fill `out`, on the device's current stream."""
    on_device_of(images, _run, kind, codes, numbers, means, out)


def _run(
    images: Tensor, kind: int, codes: Tensor, numbers: Tensor, means: Tensor | None, out: Tensor
) -> None:
    n, channels, height, width = images.shape
    pixels = height * width
    block = min(_MOST_PIXELS, power_of_2(pixels))
    launch(
        changed,
        (n, ceil_div(pixels, block)),
        max(1, block // 64),
        images=images,
        codes=codes,
        numbers=numbers,
        means=images if means is None else means,
        out=out,
        KIND=kind,
        CHANNELS=channels,
        HEIGHT=height,
        WIDTH=width,
        BLOCK=block,
    )


@triton.jit
def changed(
    images, codes, numbers, means, out, KIND: tl.constexpr, CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some pixels of an image in one kind of pass, see `operations.py`."""
    n = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = p < HEIGHT * WIDTH
    y = p // WIDTH
    x = p % WIDTH
    code = tl.load(codes + n)
    a = tl.load(numbers + 4 * n)
    b = tl.load(numbers + 4 * n + 1)
    c = tl.load(numbers + 4 * n + 2)
    d = tl.load(numbers + 4 * n + 3)
    image = images + n * CHANNELS * HEIGHT * WIDTH
    place = out + n * CHANNELS * HEIGHT * WIDTH + p
    if code == COLOR:
        _color(image, place, tl.load(means + n), a, b, c, p, there, KIND, CHANNELS, HEIGHT, WIDTH)
    elif code == CROP:
        down = a.to(tl.int32)
        right = b.to(tl.int32)
        if KIND == TRANSPOSED:
            down = -down
            right = -right
        _moved(image, place, y + down, x + right, there, CHANNELS, HEIGHT, WIDTH)
    elif code == CUTOUT:
        hole = (y >= a) & (y < b) & (x >= c) & (x < d)
        _moved(image, place, tl.where(hole, -1, y), x, there, CHANNELS, HEIGHT, WIDTH)
    elif code == FLIP:
        _moved(image, place, y, tl.where(a != 0, WIDTH - 1 - x, x), there, CHANNELS, HEIGHT, WIDTH)
    elif KIND == TRANSPOSED:
        _gathered(image, place, a, b, c, d, y, x, there, CHANNELS, HEIGHT, WIDTH)
    else:
        _sampled(image, place, a, b, c, d, y, x, there, CHANNELS, HEIGHT, WIDTH)


@triton.jit
def _color(
    image, place, mean, brightness, saturation, contrast, p, there, KIND: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    grey = tl.zeros_like(tl.load(image + p, mask=there, other=0.0))
    for channel in range(CHANNELS):
        grey += tl.load(image + channel * (HEIGHT * WIDTH) + p, mask=there, other=0.0)
    grey = grey / CHANNELS
    for channel in range(CHANNELS):
        value = tl.load(image + channel * (HEIGHT * WIDTH) + p, mask=there, other=0.0)
        value = ((value - grey) * saturation + grey - mean) * contrast + mean
        if KIND == FORWARD:
            value += brightness
        tl.store(place + channel * (HEIGHT * WIDTH), value, mask=there)


@triton.jit
def _moved(
    image, place, row, column, there,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each pixel from another place, zero from outside."""
    inside = there & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    at = row * WIDTH + column
    for channel in range(CHANNELS):
        value = tl.load(image + channel * (HEIGHT * WIDTH) + at, mask=inside, other=0.0)
        tl.store(place + channel * (HEIGHT * WIDTH), value, mask=there)


@triton.jit
def _sampled(
    image, place, xx, xy, yx, yy, y, x, there,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each pixel from between four, linearly."""
    across = x.to(xx.dtype) - (WIDTH - 1) / 2
    down = y.to(xx.dtype) - (HEIGHT - 1) / 2
    column = xx * across + xy * (WIDTH / HEIGHT) * down + (WIDTH - 1) / 2
    row = yx * (HEIGHT / WIDTH) * across + yy * down + (HEIGHT - 1) / 2
    left = tl.floor(column)
    top = tl.floor(row)
    for channel in range(CHANNELS):
        total = tl.zeros_like(row)
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                r = top + i
                q = left + j
                share = (1 - tl.abs(row - r)) * (1 - tl.abs(column - q))
                inside = there & (r >= 0) & (r < HEIGHT) & (q >= 0) & (q < WIDTH)
                at = channel * (HEIGHT * WIDTH) + r.to(tl.int32) * WIDTH + q.to(tl.int32)
                total += share * tl.load(image + at, mask=inside, other=0.0)
        tl.store(place + channel * (HEIGHT * WIDTH), total, mask=there)


@triton.jit
def _gathered(
    image, place, xx, xy, yx, yy, y, x, there,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The transpose of `_sampled`: what each pixel was in, of the outputs near it."""
    across = x.to(xx.dtype) - (WIDTH - 1) / 2
    down = y.to(xx.dtype) - (HEIGHT - 1) / 2
    xy = xy * (WIDTH / HEIGHT)
    yx = yx * (HEIGHT / WIDTH)
    determinant = xx * yy - xy * yx
    top = tl.floor((xx * down - yx * across) / determinant + (HEIGHT - 1) / 2) + (1 - REACH // 2)
    left = tl.floor((yy * across - xy * down) / determinant + (WIDTH - 1) / 2) + (1 - REACH // 2)
    for channel in range(CHANNELS):
        total = tl.zeros_like(top)
        for i in range(REACH):
            for j in tl.static_range(REACH):
                r = top + i
                q = left + j
                v = r - (HEIGHT - 1) / 2
                u = q - (WIDTH - 1) / 2
                of_column = tl.maximum(1 - tl.abs(xx * u + xy * v - across), 0.0)
                of_row = tl.maximum(1 - tl.abs(yx * u + yy * v - down), 0.0)
                inside = there & (r >= 0) & (r < HEIGHT) & (q >= 0) & (q < WIDTH)
                at = channel * (HEIGHT * WIDTH) + r.to(tl.int32) * WIDTH + q.to(tl.int32)
                total += of_row * of_column * tl.load(image + at, mask=inside, other=0.0)
        tl.store(place + channel * (HEIGHT * WIDTH), total, mask=there)
