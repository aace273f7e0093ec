"""What the three kernels of `orders.py` share: places, loads, moments of a group.

Tiles are `[G, J, P, W]`: groups of a row, channels of a group, windows of a map, entries of a
window. A window is what one entry of the output is the mean of: 2 x 2 entries, or one without
pooling. Windows of odd maps are as many as cover them, and those that are not whole have no output.
So pooling is a sum over W, and its derivative a broadcast along it. Numbers of a channel are
`[G, J, 1, 1]`, of a group `[G, 1, 1, 1]`. EVEN: nothing of the tile is out of bounds.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A sum of maps as large as the type has them is of numbers times this.
SMALL = tl.constexpr(2.0**-30)
# Numbers whose squares are beyond the type are squared times this.
LARGE_SCALE = tl.constexpr(2.0**-80)
LARGE_SCALE_64 = tl.constexpr(2.0**-600)


@triton.jit
def own_channels(
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_J: tl.constexpr
):  # fmt: skip
    """The program's row, its channels `[G, J, 1, 1]`, and which of them there are."""
    blocks: tl.constexpr = (GROUPS + BLOCK_G - 1) // BLOCK_G
    of_group: tl.constexpr = CHANNELS // GROUPS
    g = (tl.program_id(0) % blocks * BLOCK_G + tl.arange(0, BLOCK_G))[:, None, None, None]
    j = tl.arange(0, BLOCK_J)[None, :, None, None]
    row = (tl.program_id(0) // blocks).to(tl.int64)
    return row, g * of_group + j, (g < GROUPS) & (j < of_group)


@triton.jit
def entries_of(
    c, c_valid, at, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    POOL: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Places in a row's maps of the windows from `at` on, and which of them there are."""
    p = (at + tl.arange(0, BLOCK_P))[None, None, :, None]
    w = tl.arange(0, POOL * POOL)[None, None, None, :]
    if POOL == 1:
        pixel = p + w
        inside = pixel < HEIGHT * WIDTH
    else:
        across: tl.constexpr = (WIDTH + POOL - 1) // POOL
        i = p // across * POOL + w // POOL
        j = p % across * POOL + w % POOL
        pixel = i * WIDTH + j
        inside = (i < HEIGHT) & (j < WIDTH)
    if LAST:
        places = pixel * CHANNELS + c
    else:
        places = c * (HEIGHT * WIDTH) + pixel
    return places, c_valid & inside


@triton.jit
def windows_of(
    c, c_valid, at, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    POOL: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Places in a row's output of windows, `[G, J, P, 1]`, and which of them are whole."""
    p = (at + tl.arange(0, BLOCK_P))[None, None, :, None]
    height: tl.constexpr = HEIGHT // POOL
    width: tl.constexpr = WIDTH // POOL
    if WIDTH % POOL == 0:
        window = p
        whole = p < height * width
    else:
        window = p // (width + 1) * width + p % (width + 1)
        whole = (p // (width + 1) < height) & (p % (width + 1) < width)
    if LAST:
        places = window * CHANNELS + c
    else:
        places = c * (height * width) + window
    return places, c_valid & whole


@triton.jit
def load(pointer, places, valid, ARITHMETIC: tl.constexpr, EVEN: tl.constexpr):
    """Numbers in the arithmetic type, 0 where there are none."""
    if EVEN:
        numbers = tl.load(pointer + places)
    else:
        numbers = tl.load(pointer + places, mask=valid, other=0.0)
    return numbers.to(ARITHMETIC)


@triton.jit
def store(pointer, places, valid, numbers, EVEN: tl.constexpr):
    """Round once."""
    numbers = numbers.to(pointer.dtype.element_ty)
    if EVEN:
        tl.store(pointer + places, numbers)
    else:
        tl.store(pointer + places, numbers, mask=valid)


@triton.jit
def channel_sum(tile):
    """Sum over the entries of a channel, `[G, J, P, W]` to `[G, J, 1, 1]`."""
    flat = tl.reshape(tile, (tile.shape[0], tile.shape[1], tile.shape[2] * tile.shape[3]))
    return tl.sum(flat, 2)[:, :, None, None]


@triton.jit
def group_sum(of_channels):
    """Sum over the channels of a group, `[G, J, 1, 1]` to `[G, 1, 1, 1]`."""
    return tl.sum(of_channels, 1)[:, None]


@triton.jit
def moments(
    held, x, c, c_valid, eps, GROUPS: tl.constexpr, ARITHMETIC: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, POOL: tl.constexpr,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, END: tl.constexpr, HELD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """Mean, and 1 / deviation, of each group: of squares about the mean.

    Squares may be beyond the arithmetic type. Then they are made anew of smaller numbers.
    """
    count: tl.constexpr = CHANNELS // GROUPS * HEIGHT * WIDTH
    eps = tl.full((), eps, ARITHMETIC)
    zero = tl.zeros_like(group_sum(channel_sum(held)))
    total = zero
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        z = held
        if not HELD:
            places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
            z = load(x, places, valid, ARITHMETIC, EVEN)
        total += group_sum(channel_sum(z * SMALL))
    mean = total * (1.0 / SMALL / count)
    squares = zero
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        z = held
        if not HELD:
            z = load(x, places, valid, ARITHMETIC, EVEN)
        d = z - mean
        if not EVEN:
            d = tl.where(valid, d, 0.0)
        squares += group_sum(channel_sum(d * d))
    inverse = 1.0 / tl.sqrt(squares / count + eps)
    largest = tl.max(tl.max(tl.max(tl.max(squares, 3), 2), 1), 0)
    if largest == float("inf"):
        scale: tl.constexpr = LARGE_SCALE if ARITHMETIC == tl.float32 else LARGE_SCALE_64
        small_squares = zero
        for at in tl.range(0, END, BLOCK_P, num_stages=2):
            places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
            z = held
            if not HELD:
                z = load(x, places, valid, ARITHMETIC, EVEN)
            d = (z - mean) * scale
            if not EVEN:
                d = tl.where(valid, d, 0.0)
            small_squares += group_sum(channel_sum(d * d))
        inverse = tl.where(squares == float("inf"), scale / tl.sqrt(small_squares / count), inverse)
    return mean, inverse


@triton.jit
def parameter(pointer, place, c_valid, otherwise, ARITHMETIC: tl.constexpr):
    """Of each channel, `[G, J, 1, 1]`; a number where there is none."""
    if pointer is None:
        numbers = tl.full(c_valid.shape, otherwise, ARITHMETIC)
    else:
        numbers = tl.load(pointer + place, mask=c_valid, other=0.0)
    return numbers


@triton.jit
def before_activation(
    xhat, gamma, beta, residual, places, valid, ARITHMETIC: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """What the activation is taken of."""
    y = xhat * gamma + beta
    if residual is not None:
        y += load(residual, places, valid, ARITHMETIC, EVEN)
    return y


@triton.jit
def through(gradient, active, slope):
    """A gradient by way of the activation."""
    return tl.where(active, gradient, gradient * slope)


@triton.jit
def cotangent(pointer, places, valid, like, ARITHMETIC: tl.constexpr, EVEN: tl.constexpr):
    """Numbers of a cotangent of maps; zeros where there is none."""
    if pointer is None:
        numbers = tl.zeros_like(like)
    else:
        numbers = load(pointer, places, valid, ARITHMETIC, EVEN)
    return numbers


@triton.jit
def normalised_gradient(
    z, x, residual, grad, c, c_valid, at, mean, inverse, gamma, beta, slope,
    ARITHMETIC: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    POOL: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """xhat, where the activation's derivative is 1, and u. z: x of these windows, or None."""
    places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
    if z is None:
        z = load(x, places, valid, ARITHMETIC, EVEN)
    xhat = (z - mean) * inverse
    active = before_activation(xhat, gamma, beta, residual, places, valid, ARITHMETIC, EVEN) > 0
    window, whole = windows_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
    g = load(grad, window, whole, ARITHMETIC, EVEN) * (1.0 / (POOL * POOL))
    return xhat, active, through(tl.broadcast_to(g, xhat.shape), active, slope)
