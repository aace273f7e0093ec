"""The mathematics of a tile, which all kernels share.

Tiles are `[C, K, N, J]`: classes, blocks of channels, rows, channels of a block. Blocks are as wide
as a warp reads at once, so that a warp has a row to itself where rows are wide, and sums over a row
are made within threads first. Numbers of a row are `[C, N]`, of a class's channel `[C, K, J]`.

Logarithms of a row are kept to base 2. With s = log2(e) / tau and Q relative to its largest entry
`top`,

    v = (z - peak) s,  e = 2^v,  total = sum e,  g = v - log2(Q / top),  P = e / total
    log2(P / Q) = g - log2(total top),  KL = (sum P g - log2(total top)) / log2(e)

whose parts are as small as the differences between rows are. The gradient P (g - sum P g) does not
see what g lacks. Tiles of g are multiplied by UNIT, see there.

The lean form of a row takes one fused multiply-add for v and limits nothing. It makes KL NaN where
it could go wrong, and then the careful form serves: it subtracts the peak first, and no logarithm
is below LOWEST. See csrc/math/cmi_math.hpp for the forms of the value. Absent tensors are None,
which is known at compile time, like the block sizes, the reduction, the form and the arithmetic
type; nothing else is. What a class has one of is a scalar where a program has one class, `[C, 1]`
or what else broadcasts where it has several.

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

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Stands for log2 of probability 0, so that 0 times it is 0. 2^x is 0 well above it.
LOWEST = tl.constexpr(-1200.0)
# Factor on a tile's logarithms, free in a fused multiply-add. Those of the lean form that could
# make a gradient NaN, together with a slope of up to UNIT, become infinite by it, and KL NaN.
UNIT = tl.constexpr(4294967296.0)
# Beyond it the rounding of peak * s would itself be an exponent of some size.
LARGEST_PEAK = tl.constexpr(1048576.0)
# A row whose direct form gives at least this keeps it: `direct_form_floor` of cmi_math.hpp.
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
def load_tile(
    features, row_stride, channel_stride, rows, valid, m, ARITHMETIC, EVICTION: tl.constexpr
):  # fmt: skip
    """A tile of the features, -inf where it is not valid (None: all is)."""
    row_starts = features + rows[:, None, :, None] * row_stride
    places = row_starts + m.to(tl.int64)[None, :, None, :] * channel_stride
    if valid is None:
        z = tl.load(places, eviction_policy=EVICTION)
    else:
        z = tl.load(places, mask=valid, other=-float("inf"), eviction_policy=EVICTION)
    return z.to(ARITHMETIC)


@triton.jit
def valid_channels(m, channels, EVEN: tl.constexpr):
    """Which of a tile's channels there are, `[1, K, 1, J]`. EVEN: None, all are."""
    valid = None
    if not EVEN:
        valid = (m < channels)[None, :, None, :]
    return valid


@triton.jit
def store_tile(gradient, rows, row_valid, m, channels, result, EVEN):
    """Round once, into the rows they belong to."""
    places = gradient + rows[:, None, :, None] * channels + m[None, :, None, :]
    valid = row_valid[:, None, :, None]
    if not EVEN:
        valid = valid & (m < channels)[None, :, None, :]
    tl.store(
        places, result.to(gradient.dtype.element_ty), mask=valid, eviction_policy="evict_first"
    )


@triton.jit
def exponent_scale(inverse_tau, ARITHMETIC: tl.constexpr):
    """s = log2(e) / tau."""
    return (tl.full((), inverse_tau, tl.float64) * LOG2_E).to(ARITHMETIC)


@triton.jit
def softmax_tile(z, peak, s, CAREFUL: tl.constexpr):
    """v and e."""
    if CAREFUL:
        v = (z - peak[:, None, :, None]) * s
    else:
        shift = peak * s
        shift = tl.where(tl.abs(shift) < LARGEST_PEAK, shift, float("nan"))
        v = tl.fma(z, s, -shift[:, None, :, None])
    return v, tl.exp2(v)


@triton.jit
def log_target(q, top, ARITHMETIC: tl.constexpr):
    """UNIT log2(Q / top). Entries without a logarithm belong to probabilities as small."""
    target = tl.log2(q * (1.0 / top)) * UNIT
    return tl.where(q < smallest_normal(ARITHMETIC), 0.0, target)


@triton.jit
def log_ratio(v, target, LIMIT: tl.constexpr):
    """UNIT g. LIMIT: a number where P is 0, NaN where a row or its class is."""
    if LIMIT:
        v = tl.maximum(v, LOWEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.fma(v, UNIT, -target[:, :, None, :])


@triton.jit
def accurate_terms(g, offset, e, inverse_total, q, ARITHMETIC: tl.constexpr):
    """Q f(d), f(d) = e^d (d - 1) + 1: by its series for small |d|, as P (d - 1) + Q beyond."""
    d = tl.fma(g, LN_2 / UNIT, -(offset * LN_2)[:, None, :, None])
    inverse = inverse_total[:, None, :, None]
    square = d * d
    if ARITHMETIC == tl.float64:
        f = tl.fma(d, 16.0 / 355687428096000, 15.0 / 20922789888000)
        f = tl.fma(d, f, 14.0 / 1307674368000)
        f = tl.fma(d, f, 13.0 / 87178291200)
        f = tl.fma(d, f, 12.0 / 6227020800)
        f = tl.fma(d, f, 11.0 / 479001600)
        f = tl.fma(d, f, 10.0 / 39916800)
        f = tl.fma(d, f, 9.0 / 3628800)
        f = tl.fma(d, f, 8.0 / 362880)
        f = tl.fma(d, f, 7.0 / 40320)
        f = tl.fma(d, f, 6.0 / 5040)
        f = tl.fma(d, f, 5.0 / 720)
        f = tl.fma(d, f, 4.0 / 120)
        f = tl.fma(d, f, 3.0 / 24)
        f = tl.fma(d, f, 2.0 / 6)
        f = tl.fma(d, f, 1.0 / 2)
        square_of_reach = 0.25
    else:
        f = tl.fma(d, 2.18466484e-05, 0.000178510789)
        f = tl.fma(d, f, 0.00119137904)
        f = tl.fma(d, f, 0.0069414773)
        f = tl.fma(d, f, 0.033332799)
        f = tl.fma(d, f, 0.12500057)
        f = tl.fma(d, f, 0.33333340)
        f = tl.fma(d, f, 0.49999997)
        square_of_reach = 1.0
    return tl.where(
        square <= square_of_reach, q * square * f, tl.fma(e, tl.fma(d, inverse, -inverse), q)
    )


@triton.jit
def needs_accurate_form(kl, missing, row_valid):
    """Which rows take the series, which needs a Q that nearly sums to 1. NaN does not."""
    larger = tl.maximum(tl.abs(kl), tl.abs(missing), propagate_nan=tl.PropagateNan.ALL)
    return row_valid & (larger < DIRECT_FORM_FLOOR)


@triton.jit
def direct_form(mean_g, offset, row_valid):
    """KL of each row from its mean of UNIT g."""
    return tl.where(row_valid, (mean_g * (1.0 / UNIT) - offset) * LN_2, 0.0)


@triton.jit
def divergences(
    e, g, mean_g, offset, inverse_total, q, missing, row_valid, ARITHMETIC: tl.constexpr
):  # fmt: skip
    """KL of each row, by the form that its size asks for."""
    kl = direct_form(mean_g, offset, row_valid)
    small = needs_accurate_form(kl, missing, row_valid)
    if tl.max(tl.max(small.to(tl.int32), 1), 0) == 1:
        terms = accurate_terms(g, offset, e, inverse_total, q[:, :, None, :], ARITHMETIC)
        kl = tl.where(small, row_sum(terms) + missing, kl)
    return kl


@triton.jit
def rho_of(weighted, q, size, ARITHMETIC: tl.constexpr):
    """rho = mean of (w - mean w) P / Q; 0 where Q is too small to matter."""
    return tl.where(q < smallest_normal(ARITHMETIC), 0.0, weighted / size / q)


@triton.jit
def row_gradient(e, g, mean_g, slope, rho, rho_mean, row_factor):
    """e slope (g - sum P g) - e row_factor (rho - sum P rho)."""
    slope = slope * (LN_2 / UNIT)
    shift = -(mean_g * slope)[:, None, :, None]
    gradient = e * tl.fma(g, slope[:, None, :, None], shift)
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
