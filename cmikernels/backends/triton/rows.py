"""Classes larger than a tile, row block by row block.

A program that serves a whole class reads it twice, the second time from L2. Where several share a
class, slot_sums comes first, then class_means, then class_rows for value and gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cmikernels.backends.triton.slots import (
    block_rows,
    class_bounds,
    slot_rows,
)
from cmikernels.backends.triton.tile import (
    PLAIN_INTEGERS,
    UNIT,
    add_exactly,
    columns,
    divergences,
    exponent_scale,
    given_centroids,
    is_all_one,
    load_tile,
    log_ratio,
    log_target,
    rho_of,
    row_gradient,
    row_max,
    row_sum,
    row_weights,
    softmax_tile,
    store_tile,
    valid_channels,
)

# Steps after which a sum of probabilities starts anew: rounding must not grow with the class.
STEPS_OF_A_SUM = tl.constexpr(64)


@triton.jit
def mean_of_rows(
    features, row_stride, channel_stride, order, peaks, totals, incoming, mean_weights, y, begin,
    end, m, channels, s, ARITHMETIC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr, EVEN: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Sums over rows of class y of P and, with mean_weights, of (w - mean w) P; both `[1, K, J]`.

    `peaks` and `totals` (N) where they are known, as of rows wider than the tile.
    """
    mean_weight = 0.0
    if mean_weights is not None:
        mean_weight = tl.load(mean_weights + y)
    sums = tl.zeros((1, BLOCK_K, BLOCK_N, BLOCK_J), ARITHMETIC)
    weighted = tl.zeros((1, BLOCK_K, BLOCK_N, BLOCK_J), ARITHMETIC)
    for start in range(begin, end, STEPS_OF_A_SUM * BLOCK_N):
        part = tl.zeros((1, BLOCK_K, BLOCK_N, BLOCK_J), ARITHMETIC)
        weighted_part = tl.zeros((1, BLOCK_K, BLOCK_N, BLOCK_J), ARITHMETIC)
        stop = tl.minimum(start + STEPS_OF_A_SUM * BLOCK_N, end)
        for at in tl.range(start, stop, BLOCK_N, num_stages=3):
            rows, row_valid = block_rows(at, end, order, BLOCK_N)
            z = load_tile(
                features, row_stride, channel_stride, rows, valid_channels(m, channels, EVEN), m,
                ARITHMETIC, "evict_last",
            )  # fmt: skip
            if peaks is None:
                _, e = softmax_tile(z, row_max(z), s, CAREFUL)
                total = row_sum(e)
            else:
                _, e = softmax_tile(z, tl.load(peaks + rows), s, CAREFUL)
                total = tl.load(totals + rows)
            inverse_total = tl.where(row_valid, 1.0 / total, 0.0)
            part = tl.fma(e, inverse_total[:, None, :, None], part)
            if mean_weights is not None:
                w = tl.load(incoming + rows)
                excess = (w - mean_weight) * inverse_total
                weighted_part = tl.fma(e, excess[:, None, :, None], weighted_part)
        sums += part
        weighted += weighted_part
    return tl.sum(sums, 2), tl.sum(weighted, 2)


@triton.jit
def own_mean(
    features, row_stride, channel_stride, order, incoming, mean_weights, y, begin, end, m, channels,
    inverse_tau, ARITHMETIC: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """mean_of_rows of rows that fit the tile, by the lean form and, where that fails, with care.

    The only channel of a row has a probability of exactly 1 by the careful form alone.
    """
    s = exponent_scale(inverse_tau, ARITHMETIC)
    total, weighted = mean_of_rows(
        features, row_stride, channel_stride, order, None, None, incoming, mean_weights, y, begin,
        end, m, channels, s, ARITHMETIC, BLOCK_K, BLOCK_N, BLOCK_J, EVEN, BLOCK_K * BLOCK_J == 1,
    )  # fmt: skip
    check = tl.sum(total)
    if check != check:
        total, weighted = mean_of_rows(
            features, row_stride, channel_stride, order, None, None, incoming, mean_weights, y,
            begin, end, m, channels, s, ARITHMETIC, BLOCK_K, BLOCK_N, BLOCK_J, EVEN, True,
        )  # fmt: skip
    return total, weighted


@triton.jit
def finish_rows(
    features, row_stride, channel_stride, order, incoming, value, gradient, begin, end, y, m, q,
    rho, missing, has_peers, size, channels, inverse_tau, weight, ARITHMETIC: tl.constexpr,
    REDUCTION: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Value and gradient of rows of one class with centroid `[1, K, J]`; returns the sum of KL.

    Where that is NaN and the form is not the careful one, all is to be done again.
    """
    s = exponent_scale(inverse_tau, ARITHMETIC)
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    # Without a gradient here the features are read again for one.
    eviction: tl.constexpr = "" if gradient is None else "evict_first"
    top = tl.minimum(tl.max(q), 1.0)  # a given one may be beyond 1
    target = log_target(q, top, ARITHMETIC)
    sums = tl.zeros((1, BLOCK_N), ARITHMETIC)
    lost = tl.zeros((1, BLOCK_N), ARITHMETIC)
    row_scale = weight
    if REDUCTION == "class":
        row_scale = weight / size
    # What the careful form's first loads need stays in registers while the lean form runs.
    stages: tl.constexpr = 2 if CAREFUL else 3
    for at in tl.range(begin, end, BLOCK_N, num_stages=stages):
        rows, row_valid = block_rows(at, end, order, BLOCK_N)
        z = load_tile(
            features, row_stride, channel_stride, rows, valid_channels(m, channels, EVEN), m,
            ARITHMETIC, eviction,
        )  # fmt: skip
        v, e = softmax_tile(z, row_max(z), s, CAREFUL)
        total = row_sum(e)
        inverse_total = tl.where(row_valid, 1.0 / total, 0.0)
        g = log_ratio(v, target, CAREFUL or not EVEN)
        mean_g = row_sum(e * g) * inverse_total
        if value is not None:
            kl = has_peers * divergences(
                e, g, mean_g, tl.log2(total * top), inverse_total, q, missing, row_valid,
                ARITHMETIC,
            )  # fmt: skip
            sums, lost = add_exactly(sums, lost, kl)
            if REDUCTION == "none":
                tl.store(value + rows, kl * weight, mask=row_valid)
        elif not CAREFUL:
            sums += mean_g
        if gradient is not None:
            w = row_weights(row_scale, incoming, rows, y, row_valid, REDUCTION)
            row_factor = has_peers * inverse_total * inverse_tau
            slope = w * row_factor
            if not CAREFUL:
                sums += tl.where(tl.abs(slope) < UNIT, 0.0, float("nan"))
            rho_mean = None
            if rho is not None:
                rho_mean = row_sum(e * rho[:, :, None, :]) * inverse_total
            result = row_gradient(e, g, mean_g, slope, rho, rho_mean, weight * row_factor)
            store_tile(gradient, rows, row_valid, m, channels, result, EVEN)
    return tl.sum(tl.sum(sums, 1), 0)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def class_rows(
    features, row_stride, channel_stride, order, offsets, given, class_q, class_rho, mean_weights,
    incoming, value, gradient, means, num_classes, rows_per_class, rows_per_slot, channels,
    inverse_tau: tl.float64, weight: tl.float64,
    ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr, UNLESS_ONE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Value and gradient of a slot's rows; without rows_per_slot, of all rows of a class.

    The centroid is a given one, or class_q (C, M) made before with its class_rho, or made here from
    the rows at hand, which then are all of their class. `value` is each program's sum; each class's
    number where a program serves a class; each row's.
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
    if UNLESS_ONE:
        if is_all_one(incoming, c, num_classes, REDUCTION == "class"):
            return
    weight = tl.full((), weight, ARITHMETIC)
    m = columns(0, BLOCK_K, BLOCK_J)
    m_valid = (m < channels)[None, :, :]
    places = c[:, None, None] * channels + m[None, :, :]
    size = tl.maximum(count, 1).to(ARITHMETIC)
    missing = tl.zeros((), ARITHMETIC)
    has_peers = tl.where(count == 1, 0.0, 1.0).to(ARITHMETIC)  # see class_tiles
    rho = None
    if given is not None:
        q, mass = given_centroids(given, c, m, m_valid, channels, ARITHMETIC)
        missing = (1.0 - tl.sum(mass)).to(ARITHMETIC)
        has_peers = tl.full((), 1.0, ARITHMETIC)
    elif class_q is not None:
        q = tl.load(class_q + places, mask=m_valid, other=0.0)
        if class_rho is not None:
            rho = tl.load(class_rho + places, mask=m_valid, other=0.0)
    else:
        q, weighted = own_mean(
            features, row_stride, channel_stride, order, incoming, mean_weights, y, begin, end, m,
            channels, inverse_tau, ARITHMETIC, BLOCK_K, BLOCK_N, BLOCK_J, EVEN,
        )  # fmt: skip
        q = q / size
        if mean_weights is not None:
            rho = rho_of(weighted, q, size, ARITHMETIC)
        if means is not None:
            tl.store(means + places, q, mask=m_valid)
    if value is None and gradient is None:
        return
    total = finish_rows(
        features, row_stride, channel_stride, order, incoming, value, gradient, begin, end, y, m,
        q, rho, missing, has_peers, size, channels, inverse_tau, weight,
        ARITHMETIC, REDUCTION, BLOCK_N, EVEN, BLOCK_K * BLOCK_J == 1,
    )  # fmt: skip
    if total != total:
        total = finish_rows(
            features, row_stride, channel_stride, order, incoming, value, gradient, begin, end, y,
            m, q, rho, missing, has_peers, size, channels, inverse_tau, weight,
            ARITHMETIC, REDUCTION, BLOCK_N, EVEN, True,
        )  # fmt: skip
    if value is not None and REDUCTION != "none":
        if REDUCTION == "class" and rows_per_slot is None:
            total = total * weight / size
        tl.store(value + slot, total)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def slot_sums(
    features, row_stride, channel_stride, order, offsets, incoming, mean_weights, sums,
    weighted_sums, num_classes, rows_per_class, rows_per_slot, channels, inverse_tau: tl.float64,
    ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr, UNLESS_ONE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Sum of P over each slot's rows, `(slots, M)`, and with mean_weights of (w - mean w) P."""
    slot = tl.program_id(0).to(tl.int64)
    y, begin, end, _ = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    if UNLESS_ONE:
        if is_all_one(incoming, y + tl.arange(0, 1), num_classes, REDUCTION == "class"):
            return
    m = columns(0, BLOCK_K, BLOCK_J)
    total, weighted = own_mean(
        features, row_stride, channel_stride, order, incoming, mean_weights, y, begin, end, m,
        channels, inverse_tau, ARITHMETIC, BLOCK_K, BLOCK_N, BLOCK_J, EVEN,
    )  # fmt: skip
    places = (slot + tl.arange(0, 1))[:, None, None] * channels + m[None, :, :]
    valid = (m < channels)[None, :, :]
    tl.store(sums + places, total, mask=valid)
    if mean_weights is not None:
        tl.store(weighted_sums + places, weighted, mask=valid)
