"""The Triton kernels; `triton.py` chooses among them and launches them.

    class_tiles      classes that fit a program's registers: one read, one write
    class_sweeps     a program for each class, which reads it twice, the second time from L2
    slot_sums        \\
    class_means       > classes shared by several programs, each with a slot of rows
    slot_gradients   /
    row_statistics, slot_column_sums, wide_slot_gradients     the same for rows wider than a tile
    weight_means, sum_values                                  small helpers

Tiles are `[C, N, M]`: classes, rows, channels. A row's numbers are kept as u = (z - peak) / tau,
e = exp u, total = sum e, so that P = e / total and, with Q relative to its largest entry `top`,

    d = log P - log Q = u - log(Q / top) - log(total top)

whose parts are as small as the differences between rows are. Absent tensors are None, which is
known at compile time like the block sizes; nothing else is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}

# Stands for log of probability 0, so that 0 * d is 0.
LOWEST = tl.constexpr(-1e30)
# A row whose direct-form KL is at least this keeps it (see csrc/include/cmi_math.hpp).
DIRECT_FORM_FLOOR = tl.constexpr(0.25)
# Pivots in one step of the search for a slot's class.
SEARCH_WAYS = tl.constexpr(128)

_SIZES = ["num_classes", "rows_per_class", "rows_per_slot", "num_values", "num_blocks"]


@triton.jit
def smallest_normal(ARITHMETIC: tl.constexpr):
    if ARITHMETIC == tl.float64:
        tiny = tl.full((), 2.2250738585072014e-308, tl.float64)
    else:
        tiny = tl.full((), 1.1754943508222875e-38, tl.float32)
    return tiny


@triton.jit
def load_tile(features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC):
    """`[C, N, M]` of the features, -inf outside."""
    places = (
        features + rows[:, :, None] * row_stride + m.to(tl.int64)[None, None, :] * channel_stride
    )
    valid = row_valid[:, :, None] & (m < channels)[None, None, :]
    return tl.load(places, mask=valid, other=-float("inf")).to(ARITHMETIC)


@triton.jit
def store_tile(gradient, rows, row_valid, m, channels, result):
    """Round `[C, N, M]` once, into the rows they belong to."""
    places = gradient + rows[:, :, None] * channels + m[None, None, :]
    valid = row_valid[:, :, None] & (m < channels)[None, None, :]
    tl.store(places, result.to(gradient.dtype.element_ty), mask=valid)


@triton.jit
def softmax_tile(z, row_valid, inverse_tau):
    """u, e and total of each row; e is 0 where a lane lies outside the problem, total is 1."""
    peak = tl.where(row_valid, tl.max(z, 2), 0.0)
    u = (z - peak[:, :, None]) * inverse_tau
    e = tl.exp(u)
    return u, e, tl.where(row_valid, tl.sum(e, 2), 1.0)


@triton.jit
def log_target(q, top, ARITHMETIC: tl.constexpr):
    """log(Q / top). Entries too small to have a logarithm belong to probabilities as small."""
    return tl.where(q < smallest_normal(ARITHMETIC), 0.0, tl.log(q / top))


@triton.jit
def log_ratio(u, target, offset):
    """d = log P - log Q, a number where P is 0, NaN where a row or its class is."""
    d = u - target - offset
    return tl.where(d < LOWEST, LOWEST, d)


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
        reach = 0.25
    else:
        f = 0.000178510789 + d * 2.18466484e-05
        f = 0.00119137904 + d * f
        f = 0.0069414773 + d * f
        f = 0.033332799 + d * f
        f = 0.12500057 + d * f
        f = 0.33333340 + d * f
        f = 0.49999997 + d * f
        reach = 1.0
    return tl.where(square <= reach, q * square * f, p * d + (q - p))


@triton.jit
def divergences(u, e, inverse_total, offset, target, q, missing, row_valid, ARITHMETIC, ACCURATE):
    """d, the direct form of KL, which gradients need, and the form that the value is made of."""
    d = log_ratio(u, target, offset[:, :, None])
    kl = tl.where(row_valid, tl.sum(e * d, 2) * inverse_total, 0.0)
    best = kl
    if ACCURATE:
        small = row_valid & (tl.abs(kl) < DIRECT_FORM_FLOOR)
        if tl.max(tl.max(small.to(tl.int32), 1), 0) == 1:
            terms = accurate_terms(d, e * inverse_total[:, :, None], q, ARITHMETIC)
            best = tl.where(small, tl.sum(terms, 2) + missing[:, None], kl)
    return d, kl, best


@triton.jit
def rho_of(weighted, q, size, ARITHMETIC: tl.constexpr):
    """rho = mean of (w - mean w) P / Q; 0 where Q is too small to matter."""
    return tl.where(q < smallest_normal(ARITHMETIC), 0.0, weighted / size / q)


@triton.jit
def row_gradient(e, d, kl, slope, rho, rho_mean, tilt):
    """e slope (d - KL) - e tilt (rho - sum P rho). e comes first, so that 0 wins over any d."""
    gradient = (e * slope[:, :, None]) * (d - kl[:, :, None])
    if rho is not None:
        gradient -= (e * tilt[:, :, None]) * (rho - rho_mean[:, :, None])
    return gradient


@triton.jit
def given_centroids(given, c, m, valid, channels, ARITHMETIC: tl.constexpr):
    """`[C, M]` of a given centroid, floored at the smallest normal number, and its sum in float64.

    The sum decides what is missing from 1, which may be all there is to a small KL.
    """
    q = tl.load(given + c[:, None] * channels + m[None, :], mask=valid, other=0.0)
    tiny = smallest_normal(ARITHMETIC)
    q = tl.where(valid, tl.where(q < tiny, tiny, q), 0.0)
    return q, tl.sum(q.to(tl.float64), 1)


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


@triton.jit(do_not_specialize=_SIZES)
def class_tiles(
    features,
    row_stride,
    channel_stride,
    order,
    offsets,
    given,
    incoming,
    value,
    gradient,
    means,
    num_classes,
    rows_per_class,
    channels,
    inverse_tau: tl.float64,
    weight: tl.float64,
    ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Everything about groups of BLOCK_C classes of at most BLOCK_N rows.

    `value` is each group's sum (reduction "total"), each class's or each row's number. A program
    takes several groups, so that the next one is on its way while one is computed.
    """
    if SKIP_ONE and REDUCTION == "total":
        if tl.load(incoming) == 1.0:
            return
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    weight = tl.full((), weight, ARITHMETIC)
    n = tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    m_valid = m < channels
    groups = (num_classes + BLOCK_C - 1) // BLOCK_C
    for group in tl.range(tl.program_id(0), groups, tl.num_programs(0), num_stages=2):
        c = (tl.arange(0, BLOCK_C) + group * BLOCK_C).to(tl.int64)
        c_valid = c < num_classes
        if SKIP_ONE and REDUCTION == "class":
            c_valid = c_valid & (tl.load(incoming + c, mask=c_valid, other=1.0) != 1.0)
        if offsets is None:
            first = c * rows_per_class
            count = tl.where(c_valid, rows_per_class, 0)
        else:
            first = tl.load(offsets + c, mask=c_valid, other=0)
            count = tl.load(offsets + c + 1, mask=c_valid, other=0) - first
        row_valid = n[None, :] < count[:, None]
        rows = first[:, None] + n[None, :]
        if order is not None:
            rows = tl.load(order + rows, mask=row_valid, other=0)
        z = load_tile(
            features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC
        )
        u, e, total = softmax_tile(z, row_valid, inverse_tau)
        inverse_total = tl.where(row_valid, 1.0 / total, 0.0)

        size = tl.maximum(count, 1).to(ARITHMETIC)
        q_valid = c_valid[:, None] & m_valid[None, :]
        if given is None:
            q = tl.sum(e * inverse_total[:, :, None], 1) / size[:, None]
            missing = tl.zeros_like(size)
            # A class of one row is its own centroid: exactly nothing, or NaN if the row is.
            distinct = tl.where(count == 1, 0.0, 1.0).to(ARITHMETIC)
        else:
            q, mass = given_centroids(given, c, m, q_valid, channels, ARITHMETIC)
            missing = (1.0 - mass).to(ARITHMETIC)
            distinct = tl.full((BLOCK_C,), 1.0, ARITHMETIC)
        if means is not None:
            tl.store(means + c[:, None] * channels + m[None, :], q, mask=q_valid)

        if value is not None or gradient is not None:
            top = tl.minimum(tl.max(q, 1), 1.0)  # a given one may be beyond 1
            target = log_target(q, top[:, None], ARITHMETIC)
            offset = tl.log(total * top[:, None])
            d, kl, best = divergences(
                u, e, inverse_total, offset, target[:, None, :], q[:, None, :], missing, row_valid,
                ARITHMETIC, value is not None,
            )  # fmt: skip
        if value is not None:
            best = best * distinct[:, None]
            if REDUCTION == "none":
                tl.store(value + rows, best * weight, mask=row_valid)
            elif REDUCTION == "class":
                tl.store(value + c, tl.sum(best, 1) * weight / size, mask=c_valid)
            else:
                tl.store(value + group, tl.sum(tl.sum(best, 1), 0))
        if gradient is not None:
            row_scale = weight
            if REDUCTION == "class":
                row_scale = weight / size[:, None]
            some_class = tl.minimum(c, num_classes - 1)[:, None]
            w = row_weights(row_scale, incoming, rows, some_class, row_valid, REDUCTION)
            tilt = distinct[:, None] * inverse_total * inverse_tau
            if REDUCTION == "none" and incoming is not None and given is None:
                excess = (w - (tl.sum(w, 1) / size)[:, None]) * inverse_total
                rho = rho_of(tl.sum(e * excess[:, :, None], 1), q, size[:, None], ARITHMETIC)
                rho = rho[:, None, :]
                rho_mean = tl.sum(e * rho, 2) * inverse_total
                result = row_gradient(e, d, kl, w * tilt, rho, rho_mean, tilt)
            else:
                result = row_gradient(e, d, kl, w * tilt, None, None, None)
            store_tile(gradient, rows, row_valid, m, channels, result)


@triton.jit
def class_bounds(y, offsets, rows_per_class):
    """First sorted position of a class and its number of rows."""
    if offsets is None:
        first = y * rows_per_class
        count = y * 0 + rows_per_class
    else:
        first = tl.load(offsets + y)
        count = tl.load(offsets + y + 1) - first
    return first, count


@triton.jit
def class_slots(y, offsets, rows_per_class, rows_per_slot):
    """First slot of a class, how many of its slots have rows, and its number of rows."""
    first, count = class_bounds(y, offsets, rows_per_class)
    slots = (count + rows_per_slot - 1) // rows_per_slot
    if offsets is None:
        begin = y * slots
    else:
        begin = first // rows_per_slot + y
    return begin, slots, count


@triton.jit
def slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot):
    """Class of a slot, its sorted positions [begin, end), and the rows of the class.

    Class y owns the slots from offsets[y] // rows_per_slot + y on: as many as its rows need, and at
    times one more, which is empty. So no table has to be made, nor the device waited for.
    """
    if offsets is None:
        slots = (rows_per_class + rows_per_slot - 1) // rows_per_slot
        y = slot // slots
        first = y * rows_per_class
        count = y * 0 + rows_per_class
        begin = first + (slot - y * slots) * rows_per_slot
    else:
        y = slot * 0
        end_class = y + num_classes
        way = tl.arange(0, SEARCH_WAYS)
        while end_class - y > 1:
            step = (end_class - y + SEARCH_WAYS - 1) // SEARCH_WAYS
            pivot = y + (way + 1) * step
            inside = pivot < end_class
            first_slot = tl.load(offsets + pivot, mask=inside, other=0) // rows_per_slot + pivot
            passed = tl.sum((inside & (first_slot <= slot)).to(tl.int64), 0)
            y += passed * step
            end_class = tl.minimum(y + step, end_class)
        first = tl.load(offsets + y)
        count = tl.load(offsets + y + 1) - first
        begin = first + (slot - first // rows_per_slot - y) * rows_per_slot
    end = tl.minimum(begin + rows_per_slot, first + count)
    return y, begin, end, count


@triton.jit
def block_rows(at, end, order, BLOCK_N: tl.constexpr):
    """Rows at a block of sorted positions, and which of them there are; both `[1, N]`."""
    positions = (at + tl.arange(0, BLOCK_N))[None, :]
    valid = positions < end
    rows = positions
    if order is not None:
        rows = tl.load(order + positions, mask=valid, other=0)
    return rows, valid


@triton.jit
def mean_of_rows(
    features, row_stride, channel_stride, order, incoming, mean_weight, begin, end, channels,
    inverse_tau, ARITHMETIC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sums over rows of P and, with incoming row weights w, of (w - mean w) P; both `[1, M]`."""
    m = tl.arange(0, BLOCK_M)
    sums = tl.zeros((1, BLOCK_N, BLOCK_M), ARITHMETIC)
    weighted = tl.zeros((1, BLOCK_N, BLOCK_M), ARITHMETIC)
    for at in tl.range(begin, end, BLOCK_N, num_stages=3):
        rows, row_valid = block_rows(at, end, order, BLOCK_N)
        z = load_tile(
            features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC
        )
        _, e, total = softmax_tile(z, row_valid, inverse_tau)
        p = e * (1.0 / total)[:, :, None]
        sums += p
        if incoming is not None:
            w = tl.load(incoming + rows, mask=row_valid, other=0.0)
            weighted += p * (w - mean_weight)[:, :, None]
    return tl.sum(sums, 1), tl.sum(weighted, 1)


@triton.jit(do_not_specialize=_SIZES)
def class_rows(
    features,
    row_stride,
    channel_stride,
    order,
    offsets,
    given,
    class_q,  # (C, M) centroids made before; None: made here, of all rows of the class
    class_rho,  # (C, M) with class_q and row weights
    mean_weights,  # (C,) with row weights
    incoming,
    value,
    gradient,
    means,
    num_classes,
    rows_per_class,
    rows_per_slot,  # None: a program serves a class
    channels,
    inverse_tau: tl.float64,
    weight: tl.float64,
    ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Value and gradient of a slot's rows, or of a class's, whose centroid it then makes first.

    `value` is each program's sum; each class's number where a program serves a class; each row's.
    """
    slot = tl.program_id(0).to(tl.int64)
    if rows_per_slot is None:
        y = slot
        begin, count = class_bounds(y, offsets, rows_per_class)
        end = begin + count
    else:
        slot = tl.num_programs(0) - 1 - slot  # what slot_sums read last is still in L2
        y, begin, end, count = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    c = y + tl.arange(0, 1)
    if SKIP_ONE:
        if is_all_one(incoming, c, num_classes, REDUCTION == "class"):
            return
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    weight = tl.full((), weight, ARITHMETIC)
    m = tl.arange(0, BLOCK_M)
    m_valid = (m < channels)[None, :]
    places = c[:, None] * channels + m[None, :]
    size = tl.maximum(count, 1).to(ARITHMETIC)
    missing = tl.zeros((1,), ARITHMETIC)
    distinct = tl.where(count == 1, 0.0, 1.0).to(ARITHMETIC)  # see class_tiles
    rho = None
    if given is not None:
        q, mass = given_centroids(given, c, m, m_valid, channels, ARITHMETIC)
        missing = (1.0 - mass).to(ARITHMETIC)
        distinct = tl.full((), 1.0, ARITHMETIC)
    elif class_q is not None:
        q = tl.load(class_q + places, mask=m_valid, other=0.0)
        if class_rho is not None:
            rho = tl.load(class_rho + places, mask=m_valid, other=0.0)
    else:
        weights = None
        mean_weight = 0.0
        if mean_weights is not None:
            weights = incoming
            mean_weight = tl.load(mean_weights + y)
        q, weighted = mean_of_rows(
            features, row_stride, channel_stride, order, weights, mean_weight, begin, end, channels,
            inverse_tau, ARITHMETIC, BLOCK_N, BLOCK_M,
        )  # fmt: skip
        q = q / size
        if weights is not None:
            rho = rho_of(weighted, q, size, ARITHMETIC)
        if means is not None:
            tl.store(means + places, q, mask=m_valid)
    if value is None and gradient is None:
        return
    total = finish_rows(
        features, row_stride, channel_stride, order, incoming, value, gradient, begin, end, y, q,
        rho, missing, distinct, size, channels, inverse_tau, weight,
        ARITHMETIC, REDUCTION, BLOCK_N, BLOCK_M,
    )  # fmt: skip
    if value is not None and REDUCTION != "none":
        if REDUCTION == "class" and rows_per_slot is None:
            total = total * weight / size
        tl.store(value + slot, total)


@triton.jit
def finish_rows(
    features, row_stride, channel_stride, order, incoming, value, gradient, begin, end, y, q,
    rho, missing, distinct, size, channels, inverse_tau, weight,
    ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Value and gradient of rows of one class with centroid `[1, M]`; returns the sum of KL."""
    m = tl.arange(0, BLOCK_M)
    top = tl.minimum(tl.max(q, 1), 1.0)  # a given one may be beyond 1
    target = log_target(q, top[:, None], ARITHMETIC)
    sums = tl.zeros((1, BLOCK_N), ARITHMETIC)
    row_scale = weight
    if REDUCTION == "class":
        row_scale = weight / size
    for at in tl.range(begin, end, BLOCK_N, num_stages=3):
        rows, row_valid = block_rows(at, end, order, BLOCK_N)
        z = load_tile(
            features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC
        )
        u, e, total = softmax_tile(z, row_valid, inverse_tau)
        inverse_total = tl.where(row_valid, 1.0 / total, 0.0)
        offset = tl.log(total * top[:, None])
        d, kl, best = divergences(
            u, e, inverse_total, offset, target[:, None, :], q[:, None, :], missing, row_valid,
            ARITHMETIC, value is not None,
        )  # fmt: skip
        best = best * distinct
        sums += best
        if value is not None and REDUCTION == "none":
            tl.store(value + rows, best * weight, mask=row_valid)
        if gradient is not None:
            w = row_weights(row_scale, incoming, rows, y, row_valid, REDUCTION)
            tilt = distinct * inverse_total * inverse_tau
            if rho is None:
                result = row_gradient(e, d, kl, w * tilt, None, None, None)
            else:
                rho_mean = tl.sum(e * rho[:, None, :], 2) * inverse_total
                result = row_gradient(e, d, kl, w * tilt, rho[:, None, :], rho_mean, tilt)
            store_tile(gradient, rows, row_valid, m, channels, result)
    return tl.sum(tl.sum(sums, 1), 0)


@triton.jit(do_not_specialize=_SIZES)
def slot_sums(
    features,
    row_stride,
    channel_stride,
    order,
    offsets,
    incoming,  # row weights or the scalar or per-class gradient that SKIP_ONE looks at
    mean_weights,
    sums,  # (slots, M)
    weighted_sums,  # (slots, M) with row weights
    num_classes,
    rows_per_class,
    rows_per_slot,
    channels,
    inverse_tau: tl.float64,
    ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sum of P over each slot's rows."""
    slot = tl.program_id(0).to(tl.int64)
    y, begin, end, _ = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    if SKIP_ONE:
        if is_all_one(incoming, y + tl.arange(0, 1), num_classes, REDUCTION == "class"):
            return
    weights = None
    mean_weight = 0.0
    if mean_weights is not None:
        weights = incoming
        mean_weight = tl.load(mean_weights + y)
    total, weighted = mean_of_rows(
        features, row_stride, channel_stride, order, weights, mean_weight, begin, end, channels,
        tl.full((), inverse_tau, ARITHMETIC), ARITHMETIC, BLOCK_N, BLOCK_M,
    )  # fmt: skip
    m = tl.arange(0, BLOCK_M)[None, :]
    places = (slot + tl.arange(0, 1))[:, None] * channels + m
    tl.store(sums + places, total, mask=m < channels)
    if mean_weights is not None:
        tl.store(weighted_sums + places, weighted, mask=m < channels)


@triton.jit(do_not_specialize=_SIZES)
def class_means(
    sums,
    weighted_sums,
    offsets,
    incoming,
    q,  # (C, M)
    rho,  # (C, M) with weighted_sums
    rows_per_class,
    rows_per_slot,
    num_classes,
    channels,
    ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Centroid, and rho, of each class from its slots' sums, in their order."""
    y = tl.program_id(0).to(tl.int64)
    if SKIP_ONE:
        if is_all_one(incoming, y + tl.arange(0, 1), num_classes, REDUCTION == "class"):
            return
    begin, slots, count = class_slots(y, offsets, rows_per_class, rows_per_slot)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((BLOCK_S, BLOCK_M), ARITHMETIC)
    weighted = tl.zeros((BLOCK_S, BLOCK_M), ARITHMETIC)
    for at in range(begin, begin + slots, BLOCK_S):
        slot = at + tl.arange(0, BLOCK_S)
        valid = (slot < begin + slots)[:, None] & (m < channels)[None, :]
        places = slot[:, None] * channels + m[None, :]
        total += tl.load(sums + places, mask=valid, other=0.0)
        if weighted_sums is not None:
            weighted += tl.load(weighted_sums + places, mask=valid, other=0.0)
    size = tl.maximum(count, 1).to(ARITHMETIC)
    mean = tl.sum(total, 0) / size
    tl.store(q + y * channels + m, mean, mask=m < channels)
    if weighted_sums is not None:
        result = rho_of(tl.sum(weighted, 0), mean, size, ARITHMETIC)
        tl.store(rho + y * channels + m, result, mask=m < channels)


@triton.jit
def row_statistics(
    features, row_stride, channel_stride, incoming, peaks, totals, channels,
    inverse_tau: tl.float64, ARITHMETIC: tl.constexpr, SKIP_ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Peak and total of each row, however wide. SKIP_ONE looks at a scalar only."""
    if SKIP_ONE:
        if tl.load(incoming) == 1.0:
            return
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    row = tl.program_id(0).to(tl.int64)
    row_start = features + row * row_stride
    lanes = tl.arange(0, BLOCK_M).to(tl.int64)
    peak = tl.full((BLOCK_M,), -float("inf"), ARITHMETIC)
    for at in range(0, channels, BLOCK_M):
        m = at + lanes
        z = tl.load(row_start + m * channel_stride, mask=m < channels, other=-float("inf"))
        peak = tl.maximum(peak, z.to(ARITHMETIC))
    peak = tl.max(peak, 0)
    total = tl.zeros((BLOCK_M,), ARITHMETIC)
    for at in range(0, channels, BLOCK_M):
        m = at + lanes
        z = tl.load(row_start + m * channel_stride, mask=m < channels, other=-float("inf"))
        total += tl.exp((z.to(ARITHMETIC) - peak) * inverse_tau)
    tl.store(peaks + row, peak)
    tl.store(totals + row, tl.sum(total, 0))


@triton.jit(do_not_specialize=_SIZES)
def slot_column_sums(
    features,
    row_stride,
    channel_stride,
    order,
    offsets,
    peaks,
    totals,
    incoming,
    mean_weights,
    sums,
    weighted_sums,
    num_classes,
    rows_per_class,
    rows_per_slot,
    channels,
    inverse_tau: tl.float64,
    ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """slot_sums for a block of columns, of rows whose peak and total are known."""
    slot = tl.program_id(0).to(tl.int64)
    y, begin, end, _ = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    if SKIP_ONE:
        if is_all_one(incoming, y + tl.arange(0, 1), num_classes, REDUCTION == "class"):
            return
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    total = tl.zeros((1, BLOCK_N, BLOCK_M), ARITHMETIC)
    weighted = tl.zeros((1, BLOCK_N, BLOCK_M), ARITHMETIC)
    mean_weight = 0.0
    if mean_weights is not None:
        mean_weight = tl.load(mean_weights + y)
    for at in tl.range(begin, end, BLOCK_N, num_stages=3):
        rows, row_valid = block_rows(at, end, order, BLOCK_N)
        z = load_tile(
            features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC
        )
        peak = tl.load(peaks + rows, mask=row_valid, other=0.0)
        row_total = tl.load(totals + rows, mask=row_valid, other=1.0)
        p = tl.exp((z - peak[:, :, None]) * inverse_tau) * (1.0 / row_total)[:, :, None]
        total += p
        if mean_weights is not None:
            w = tl.load(incoming + rows, mask=row_valid, other=0.0)
            weighted += p * (w - mean_weight)[:, :, None]
    places = (slot + tl.arange(0, 1))[:, None] * channels + m[None, :]
    valid = (m < channels)[None, :]
    tl.store(sums + places, tl.sum(total, 1), mask=valid)
    if mean_weights is not None:
        tl.store(weighted_sums + places, tl.sum(weighted, 1), mask=valid)


@triton.jit
def wide_tile(
    features, row_stride, channel_stride, rows, row_valid, m, channels, peak, offset, inverse_tau,
    given, class_q, c, top, ARITHMETIC: tl.constexpr,
):  # fmt: skip
    """e, d and Q of a block of columns of rows whose peak and total are known."""
    z = load_tile(features, row_stride, channel_stride, rows, row_valid, m, channels, ARITHMETIC)
    u = (z - peak[:, :, None]) * inverse_tau
    q, _ = wide_centroid(given, class_q, c, m, channels, ARITHMETIC)
    target = log_target(q, top[:, None], ARITHMETIC)
    d = log_ratio(u, target[:, None, :], offset[:, :, None])
    return tl.exp(u), d, q[:, None, :]


@triton.jit
def wide_centroid(given, class_q, c, m, channels, ARITHMETIC: tl.constexpr):
    """`[1, M]` of the class's centroid and, where it is a given one, its sum in float64."""
    valid = (m < channels)[None, :]
    if given is not None:
        q, mass = given_centroids(given, c, m, valid, channels, ARITHMETIC)
    else:
        q = tl.load(class_q + c[:, None] * channels + m[None, :], mask=valid, other=0.0)
        mass = tl.zeros((1,), tl.float64)
    return q, mass


@triton.jit(do_not_specialize=_SIZES)
def wide_rows(
    features,
    row_stride,
    channel_stride,
    order,
    offsets,
    peaks,
    totals,
    given,
    class_q,
    class_rho,
    incoming,
    value,
    gradient,
    num_classes,
    rows_per_class,
    rows_per_slot,
    channels,
    inverse_tau: tl.float64,
    weight: tl.float64,
    ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr,
    SKIP_ONE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """class_rows for rows wider than a tile: two sweeps over a block of rows, column by column."""
    slot = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    y, begin, end, count = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    c = y + tl.arange(0, 1)
    if SKIP_ONE:
        if is_all_one(incoming, c, num_classes, REDUCTION == "class"):
            return
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    weight = tl.full((), weight, ARITHMETIC)
    lanes = tl.arange(0, BLOCK_M)
    row_scale = weight
    if REDUCTION == "class":
        row_scale = weight / tl.maximum(count, 1).to(ARITHMETIC)

    top = tl.zeros((1,), ARITHMETIC)
    mass = tl.zeros((1,), tl.float64)
    for start in range(0, channels, BLOCK_M):
        q, part = wide_centroid(given, class_q, c, start + lanes, channels, ARITHMETIC)
        top = tl.maximum(top, tl.max(q, 1))
        mass += part
    top = tl.minimum(top, 1.0)
    missing = tl.zeros((1,), ARITHMETIC)
    distinct = tl.where(count == 1, 0.0, 1.0).to(ARITHMETIC)
    if given is not None:
        missing = (1.0 - mass).to(ARITHMETIC)
        distinct = tl.full((), 1.0, ARITHMETIC)

    sums = tl.zeros((1, BLOCK_N), ARITHMETIC)
    for at in tl.range(begin, end, BLOCK_N, num_stages=3):
        rows, row_valid = block_rows(at, end, order, BLOCK_N)
        peak = tl.load(peaks + rows, mask=row_valid, other=0.0)
        total = tl.load(totals + rows, mask=row_valid, other=1.0)
        inverse_total = tl.where(row_valid, 1.0 / total, 0.0)
        offset = tl.log(total * top[:, None])
        kl = tl.zeros((1, BLOCK_N), ARITHMETIC)
        accurate = tl.zeros((1, BLOCK_N), ARITHMETIC)
        rho_mean = tl.zeros((1, BLOCK_N), ARITHMETIC)
        for start in range(0, channels, BLOCK_M):
            m = start + lanes
            e, d, q = wide_tile(
                features, row_stride, channel_stride, rows, row_valid, m, channels, peak, offset,
                inverse_tau, given, class_q, c, top, ARITHMETIC,
            )  # fmt: skip
            kl += tl.sum(e * d, 2)
            if value is not None:
                terms = accurate_terms(d, e * inverse_total[:, :, None], q, ARITHMETIC)
                accurate += tl.sum(terms, 2)
            if class_rho is not None:
                places = class_rho + c[:, None] * channels + m[None, :]
                rho = tl.load(places, mask=(m < channels)[None, :], other=0.0)
                rho_mean += tl.sum(e * rho[:, None, :], 2)
        kl = tl.where(row_valid, kl * inverse_total, 0.0)
        if value is not None:
            small = row_valid & (tl.abs(kl) < DIRECT_FORM_FLOOR)
            best = tl.where(small, accurate + missing[:, None], kl) * distinct
            sums += best
            if REDUCTION == "none":
                tl.store(value + rows, best * weight, mask=row_valid)
        if gradient is not None:
            w = row_weights(row_scale, incoming, rows, y, row_valid, REDUCTION)
            tilt = distinct * inverse_total * inverse_tau
            for start in range(0, channels, BLOCK_M):
                m = start + lanes
                e, d, q = wide_tile(
                    features, row_stride, channel_stride, rows, row_valid, m, channels, peak,
                    offset, inverse_tau, given, class_q, c, top, ARITHMETIC,
                )  # fmt: skip
                if class_rho is None:
                    result = row_gradient(e, d, kl, w * tilt, None, None, None)
                else:
                    places = class_rho + c[:, None] * channels + m[None, :]
                    rho = tl.load(places, mask=(m < channels)[None, :], other=0.0)
                    result = row_gradient(
                        e, d, kl, w * tilt, rho[:, None, :], rho_mean * inverse_total, tilt
                    )
                store_tile(gradient, rows, row_valid, m, channels, result)
    if value is not None and REDUCTION != "none":
        tl.store(value + slot, tl.sum(tl.sum(sums, 1), 0))


@triton.jit(do_not_specialize=_SIZES)
def weight_means(order, offsets, incoming, mean_weights, rows_per_class, BLOCK: tl.constexpr):
    """Mean incoming weight of the rows of each class."""
    y = tl.program_id(0).to(tl.int64)
    begin, count = class_bounds(y, offsets, rows_per_class)
    total = tl.zeros((1, BLOCK), mean_weights.dtype.element_ty)
    for at in range(begin, begin + count, BLOCK):
        rows, valid = block_rows(at, begin + count, order, BLOCK)
        total += tl.load(incoming + rows, mask=valid, other=0.0)
    tl.store(mean_weights + y, tl.sum(tl.sum(total, 1), 0) / tl.maximum(count, 1))


@triton.jit(do_not_specialize=_SIZES)
def sum_values(
    parts, value, offsets, num_values, rows_per_class, rows_per_slot, scale: tl.float64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The value from the programs' parts: of all of them, or with slots of each class's."""
    y = tl.program_id(0).to(tl.int64)
    scale = tl.full((), scale, tl.float64)
    if rows_per_slot is None:
        begin = y
        end = y + num_values
    else:
        begin, slots, count = class_slots(y, offsets, rows_per_class, rows_per_slot)
        end = begin + slots
        scale = scale / tl.maximum(count, 1)
    total = tl.zeros((BLOCK,), tl.float64)
    for at in range(begin, end, BLOCK):
        place = at + tl.arange(0, BLOCK)
        total += tl.load(parts + place, mask=place < end, other=0.0).to(tl.float64)
    tl.store(value + y, (tl.sum(total, 0) * scale).to(value.dtype.element_ty))
