"""The mathematics of a tile, which all kernels share.

Tiles are `[C, K, N, J]`: classes, blocks of channels, rows, channels of a block. Blocks are as wide
as a warp reads at once, so that a warp has a row to itself where rows are wide, and sums over a row
are made within threads first. Numbers of a row are `[C, N]`, of a class's channel `[C, K, J]`.

A row is kept as u = (z - peak) / tau, e = exp u, total = sum e, so that P = e / total and, with Q
relative to its largest entry `top`,

    d = log P - log Q = u - log(Q / top) - log(total top)

whose parts are as small as the differences between rows are. See csrc/math/cmi_math.hpp for the
two forms of the value. Absent tensors are None, which is known at compile time, like the block
sizes, the reduction and the arithmetic type; nothing else is.

Every kernel's arguments, by name:

    features (N, M) at row_stride, channel_stride    channels M, num_classes C
    order (N) rows by class, None: they are; offsets (C + 1), None: rows_per_class in each
    given (C, M) centroids, None: the rows' own      inverse_tau 1 / tau
    incoming: gradient of the value: one number, (C) or (N) by REDUCTION "total", "class" or "none"
    UNLESS_ONE: do nothing where incoming is 1, since the gradient is right as it is
    weight: factor on a row's KL in value and gradient ("class": before division by its rows)
    value, gradient (N, M), means (C, M): what is wanted, or None
"""

from __future__ import annotations

import triton
import triton.language as tl

# Stands for log of probability 0, so that 0 * d is 0.
LOWEST = tl.constexpr(-1e30)
# A row whose direct-form KL is at least this keeps it.
DIRECT_FORM_FLOOR = tl.constexpr(0.25)
# Triton's integers that are not worth a kernel of their own for being 1 or a multiple of 16.
PLAIN_INTEGERS = ["num_classes", "rows_per_class", "rows_per_slot", "num_values"]


@triton.jit
def smallest_normal(ARITHMETIC: tl.constexpr):
    """The floor of a given centroid's entries."""
    if ARITHMETIC == tl.float64:
        tiny = tl.full((), 2.2250738585072014e-308, tl.float64)
    else:
        tiny = tl.full((), 1.1754943508222875e-38, tl.float32)
    return tiny


@triton.jit
def columns(first, BLOCK_K: tl.constexpr, BLOCK_J: tl.constexpr):
    """Channels of a tile from `first` on, `[K, J]`."""
    k = tl.arange(0, BLOCK_K)[:, None]
    return first + k * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]


@triton.jit
def add_exactly(total, lost, x):
    """total + x, and what rounding lost of it: of thousands of summands none is forgotten."""
    x = x - lost
    result = total + x
    return result, (result - total) - x


@triton.jit
def row_wise(x):
    """`[C, K, N, J]` as `[C, N, K J]`: nothing moves, and one reduction covers all channels."""
    x = tl.permute(x, (0, 2, 1, 3))
    return tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2] * x.shape[3]))


@triton.jit
def row_sum(x):
    """Sum over the channels, `[C, K, N, J]` to `[C, N]`."""
    return tl.sum(row_wise(x), 2)


@triton.jit
def row_max(x):
    """Largest of the channels, `[C, K, N, J]` to `[C, N]`."""
    return tl.max(row_wise(x), 2)


@triton.jit
def column_max(q):
    """Largest entry of each centroid, `[C, K, J]` to `[C]`."""
    return tl.max(tl.max(q, 1), 1)


@triton.jit
def load_tile(
    features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC, EVEN
):  # fmt: skip
    """A tile of the features, -inf outside them. EVEN: all channels are, rows may be any valid."""
    row_starts = features + rows[:, None, :, None] * row_stride
    places = row_starts + m.to(tl.int64)[None, :, None, :] * channel_stride
    if EVEN:
        z = tl.load(places)
    else:
        valid = row_valid[:, None, :, None] & (m < channels)[None, :, None, :]
        z = tl.load(places, mask=valid, other=-float("inf"))
    return z.to(ARITHMETIC)


@triton.jit
def store_tile(gradient, rows, row_valid, m, channels, result, EVEN):
    """Round once, into the rows they belong to."""
    places = gradient + rows[:, None, :, None] * channels + m[None, :, None, :]
    valid = row_valid[:, None, :, None]
    if not EVEN:
        valid = valid & (m < channels)[None, :, None, :]
    tl.store(places, result.to(gradient.dtype.element_ty), mask=valid)


@triton.jit
def softmax_tile(z, row_valid, inverse_tau, EVEN):
    """u, e and total of each row; total is 1 where there is none."""
    peak = row_max(z)
    if not EVEN:  # where a row that is not there is -inf throughout
        peak = tl.where(row_valid, peak, 0.0)
    u = (z - peak[:, None, :, None]) * inverse_tau
    e = tl.exp(u)
    return u, e, tl.where(row_valid, row_sum(e), 1.0)


@triton.jit
def log_target(q, top, ARITHMETIC: tl.constexpr):
    """log(Q / top). Entries too small to have a logarithm belong to probabilities as small."""
    return tl.where(q < smallest_normal(ARITHMETIC), 0.0, tl.log(q * (1.0 / top)[:, None, None]))


@triton.jit
def log_ratio(u, target, offset):
    """d = log P - log Q, a number where P is 0, NaN where a row or its class is."""
    return tl.maximum(u - target - offset, LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def accurate_terms(d, p, q, ARITHMETIC: tl.constexpr):
    """Q f(d), f(d) = e^d (d - 1) + 1: by its series for small |d|, as P d - P + Q beyond."""
    square = d * d
    if ARITHMETIC == tl.float64:
        f = 15.0 / 20922789888000 + d * (16.0 / 355687428096000)
        f = 14.0 / 1307674368000 + d * f
        f = 13.0 / 87178291200 + d * f
        f = 12.0 / 6227020800 + d * f
        f = 11.0 / 479001600 + d * f
        f = 10.0 / 39916800 + d * f
        f = 9.0 / 3628800 + d * f
        f = 8.0 / 362880 + d * f
        f = 7.0 / 40320 + d * f
        f = 6.0 / 5040 + d * f
        f = 5.0 / 720 + d * f
        f = 4.0 / 120 + d * f
        f = 3.0 / 24 + d * f
        f = 2.0 / 6 + d * f
        f = 1.0 / 2 + d * f
        square_of_reach = 0.25
    else:
        f = 0.000178510789 + d * 2.18466484e-05
        f = 0.00119137904 + d * f
        f = 0.0069414773 + d * f
        f = 0.033332799 + d * f
        f = 0.12500057 + d * f
        f = 0.33333340 + d * f
        f = 0.49999997 + d * f
        square_of_reach = 1.0
    return tl.where(square <= square_of_reach, q * square * f, p * d + (q - p))


@triton.jit
def needs_accurate_form(kl, missing, row_valid):
    """Which rows take the accurate form, which needs a Q that nearly sums to 1."""
    near_one = (tl.abs(missing) < DIRECT_FORM_FLOOR)[:, None]
    return (row_valid & near_one) & (tl.abs(kl) < DIRECT_FORM_FLOOR)


@triton.jit
def divergences(
    u, e, total, inverse_total, top, target, q, missing, row_valid, ARITHMETIC, ACCURATE
):  # fmt: skip
    """d, the direct form of KL, which gradients need, and the form that the value is made of."""
    offset = tl.log(total * top[:, None])
    d = log_ratio(u, target[:, :, None, :], offset[:, None, :, None])
    kl = tl.where(row_valid, row_sum(e * d) * inverse_total, 0.0)
    best = kl
    if ACCURATE:
        small = needs_accurate_form(kl, missing, row_valid)
        if tl.max(tl.max(small.to(tl.int32), 1), 0) == 1:
            p = e * inverse_total[:, None, :, None]
            terms = accurate_terms(d, p, q[:, :, None, :], ARITHMETIC)
            best = tl.where(small, row_sum(terms) + missing[:, None], kl)
    return d, kl, best


@triton.jit
def rho_of(weighted, q, size, ARITHMETIC: tl.constexpr):
    """rho = mean of (w - mean w) P / Q; 0 where Q is too small to matter."""
    return tl.where(q < smallest_normal(ARITHMETIC), 0.0, weighted / size / q)


@triton.jit
def row_gradient(e, d, kl, slope, rho, rho_mean, row_factor):
    """e slope (d - KL) - e row_factor (rho - sum P rho), e first so that 0 wins over any d."""
    gradient = (e * slope[:, None, :, None]) * (d - kl[:, None, :, None])
    if rho is not None:
        excess = rho[:, :, None, :] - rho_mean[:, None, :, None]
        gradient -= (e * row_factor[:, None, :, None]) * excess
    return gradient


@triton.jit
def given_centroids(given, c, m, valid, channels, ARITHMETIC: tl.constexpr):
    """`[C, K, J]` of given centroids, floored at the smallest normal number; their sums in float64.

    The sum decides what is missing from 1, which may be all there is to a small KL.
    """
    q = tl.load(given + c[:, None, None] * channels + m[None, :, :], mask=valid, other=0.0)
    tiny = smallest_normal(ARITHMETIC)
    q = tl.where(valid, tl.where(q < tiny, tiny, q), 0.0)
    return q, tl.sum(tl.sum(q.to(tl.float64), 1), 1)


@triton.jit
def is_all_one(incoming, c, num_classes, PER_CLASS: tl.constexpr):
    """Whether the incoming gradients of these classes are all exactly 1."""
    if PER_CLASS:
        g = tl.load(incoming + c, mask=c < num_classes, other=1.0)
        result = tl.min((g == 1.0).to(tl.int32), 0) == 1
    else:
        result = tl.load(incoming) == 1.0
    return result


@triton.jit
def row_weights(weight, incoming, rows, classes, row_valid, REDUCTION: tl.constexpr):
    """dL/dKL of each row: the weight times the incoming gradient of its value, if there is one."""
    if incoming is None:
        w = weight
    elif REDUCTION == "total":
        w = weight * tl.load(incoming)
    elif REDUCTION == "class":
        w = weight * tl.load(incoming + classes)
    else:
        w = weight * tl.load(incoming + rows, mask=row_valid, other=0.0)
    return w
