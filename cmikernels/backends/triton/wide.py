"""Rows wider than a tile, column by column: row statistics, sums, then value and gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from cmikernels.backends.triton.rows import mean_of_rows
from cmikernels.backends.triton.slots import (
    block_rows,
    slot_rows,
)
from cmikernels.backends.triton.tile import (
    PLAIN_INTEGERS,
    accurate_terms,
    add_exactly,
    columns,
    direct_form,
    exponent_scale,
    given_centroids,
    is_all_one,
    load_tile,
    log_ratio,
    log_target,
    needs_accurate_form,
    row_gradient,
    row_sum,
    row_weights,
    softmax_tile,
    store_tile,
    valid_channels,
)


@triton.jit
def row_statistics(
    features, row_stride, channel_stride, incoming, peaks, totals, channels,
    inverse_tau: tl.float64, ARITHMETIC: tl.constexpr, UNLESS_ONE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Peak and total of each row, however wide. UNLESS_ONE looks at a scalar only."""
    if UNLESS_ONE:
        if tl.load(incoming) == 1.0:
            return
    s = exponent_scale(inverse_tau, ARITHMETIC)
    row = tl.program_id(0).to(tl.int64)
    row_start = features + row * row_stride
    lanes = tl.arange(0, BLOCK_M).to(tl.int64)
    peak = tl.full((BLOCK_M,), -float("inf"), ARITHMETIC)
    for at in range(0, channels, BLOCK_M):
        m = at + lanes
        z = tl.load(
            row_start + m * channel_stride, mask=m < channels, other=-float("inf"),
            eviction_policy="evict_last",
        )  # fmt: skip
        peak = tl.maximum(peak, z.to(ARITHMETIC))
    peak = tl.max(peak, 0)
    total = tl.zeros((BLOCK_M,), ARITHMETIC)
    for at in range(0, channels, BLOCK_M):
        m = at + lanes
        z = tl.load(row_start + m * channel_stride, mask=m < channels, other=-float("inf"))
        total += tl.exp2((z.to(ARITHMETIC) - peak) * s)
    tl.store(peaks + row, peak)
    tl.store(totals + row, tl.sum(total, 0))


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def slot_column_sums(
    features, row_stride, channel_stride, order, offsets, peaks, totals, incoming, mean_weights,
    sums, weighted_sums, num_classes, rows_per_class, rows_per_slot, channels,
    inverse_tau: tl.float64, ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr,
    UNLESS_ONE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """slot_sums for a block of columns, of rows whose peak and total are known."""
    # One axis for both: the others of a grid end at 65535.
    blocks = (channels + BLOCK_K * BLOCK_J - 1) // (BLOCK_K * BLOCK_J)
    slot = (tl.program_id(0) // blocks).to(tl.int64)
    y, begin, end, _ = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    if UNLESS_ONE:
        if is_all_one(incoming, y + tl.arange(0, 1), num_classes, REDUCTION == "class"):
            return
    m = columns(tl.program_id(0) % blocks * BLOCK_K * BLOCK_J, BLOCK_K, BLOCK_J)
    total, weighted = mean_of_rows(
        features, row_stride, channel_stride, order, peaks, totals, incoming, mean_weights, y,
        begin, end, m, channels, exponent_scale(inverse_tau, ARITHMETIC), ARITHMETIC,
        BLOCK_K, BLOCK_N, BLOCK_J, False, True,
    )  # fmt: skip
    places = (slot + tl.arange(0, 1))[:, None, None] * channels + m[None, :, :]
    valid = (m < channels)[None, :, :]
    tl.store(sums + places, total, mask=valid)
    if mean_weights is not None:
        tl.store(weighted_sums + places, weighted, mask=valid)


@triton.jit
def wide_centroid(given, class_q, c, m, channels, ARITHMETIC: tl.constexpr):
    """`[1, K, J]` of the class's centroid and, where it is a given one, its sum in float64."""
    valid = (m < channels)[None, :, :]
    if given is not None:
        q, mass = given_centroids(given, c, m, valid, channels, ARITHMETIC)
    else:
        places = class_q + c[:, None, None] * channels + m[None, :, :]
        q = tl.load(places, mask=valid, other=0.0)
        mass = tl.zeros((1,), tl.float64)
    return q, mass


@triton.jit
def wide_tile(
    features, row_stride, channel_stride, rows, m, channels, peak, s, given, class_q, c, top,
    ARITHMETIC: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """e, g and Q of a block of columns of rows whose peak and total are known."""
    valid = valid_channels(m, channels, False)
    z = load_tile(features, row_stride, channel_stride, rows, valid, m, ARITHMETIC, EVICTION)
    v, e = softmax_tile(z, peak, s, True)
    q, _ = wide_centroid(given, class_q, c, m, channels, ARITHMETIC)
    return e, log_ratio(v, log_target(q, top, ARITHMETIC), True), q[:, :, None, :]


@triton.jit
def wide_rho(class_rho, c, m, channels):
    """`[1, K, J]` of the class's rho, None where there is none."""
    rho = None
    if class_rho is not None:
        places = class_rho + c[:, None, None] * channels + m[None, :, :]
        rho = tl.load(places, mask=(m < channels)[None, :, :], other=0.0)
    return rho


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def wide_rows(
    features, row_stride, channel_stride, order, offsets, peaks, totals, given, class_q, class_rho,
    incoming, value, gradient, num_classes, rows_per_class, rows_per_slot, channels,
    inverse_tau: tl.float64, weight: tl.float64, ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr,
    UNLESS_ONE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """class_rows for rows wider than a tile: two sweeps over a block of rows, column by column."""
    slot = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    y, begin, end, count = slot_rows(slot, offsets, num_classes, rows_per_class, rows_per_slot)
    c = y + tl.arange(0, 1)
    if UNLESS_ONE:
        if is_all_one(incoming, c, num_classes, REDUCTION == "class"):
            return
    s = exponent_scale(inverse_tau, ARITHMETIC)
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    weight = tl.full((), weight, ARITHMETIC)
    row_scale = weight
    if REDUCTION == "class":
        row_scale = weight / tl.maximum(count, 1).to(ARITHMETIC)

    top = tl.zeros((), ARITHMETIC)
    mass = tl.zeros((), tl.float64)
    for start in range(0, channels, BLOCK_K * BLOCK_J):
        m = columns(start, BLOCK_K, BLOCK_J)
        q, part = wide_centroid(given, class_q, c, m, channels, ARITHMETIC)
        top = tl.maximum(top, tl.max(q))
        mass += tl.sum(part)
    top = tl.minimum(top, 1.0)
    missing = tl.zeros((), ARITHMETIC)
    has_peers = tl.where(count == 1, 0.0, 1.0).to(ARITHMETIC)
    if given is not None:
        missing = (1.0 - mass).to(ARITHMETIC)
        has_peers = tl.full((), 1.0, ARITHMETIC)

    sums = tl.zeros((1, BLOCK_N), ARITHMETIC)
    lost = tl.zeros((1, BLOCK_N), ARITHMETIC)
    for at in range(begin, end, BLOCK_N):
        rows, row_valid = block_rows(at, end, order, BLOCK_N)
        peak = tl.load(peaks + rows)
        total = tl.load(totals + rows)
        inverse_total = tl.where(row_valid, 1.0 / total, 0.0)
        offset = tl.log2(total * top)
        mean_g = tl.zeros((1, BLOCK_N), ARITHMETIC)
        accurate = tl.zeros((1, BLOCK_N), ARITHMETIC)
        rho_mean = tl.zeros((1, BLOCK_N), ARITHMETIC)
        for start in range(0, channels, BLOCK_K * BLOCK_J):
            m = columns(start, BLOCK_K, BLOCK_J)
            e, g, q = wide_tile(
                features, row_stride, channel_stride, rows, m, channels, peak, s, given, class_q,
                c, top, ARITHMETIC, "evict_last",
            )  # fmt: skip
            mean_g += row_sum(e * g)
            if value is not None:
                accurate += row_sum(accurate_terms(g, offset, e, inverse_total, q, ARITHMETIC))
            if class_rho is not None:
                rho = wide_rho(class_rho, c, m, channels)
                rho_mean += row_sum(e * rho[:, :, None, :])
        mean_g = mean_g * inverse_total
        rho_mean = rho_mean * inverse_total
        if value is not None:
            kl = direct_form(mean_g, offset, row_valid)
            small = needs_accurate_form(kl, missing, row_valid)
            kl = tl.where(small, accurate + missing, kl) * has_peers
            sums, lost = add_exactly(sums, lost, kl)
            if REDUCTION == "none":
                tl.store(value + rows, kl * weight, mask=row_valid)
        if gradient is not None:
            w = row_weights(row_scale, incoming, rows, y, row_valid, REDUCTION)
            row_factor = has_peers * inverse_total * inverse_tau
            for start in range(0, channels, BLOCK_K * BLOCK_J):
                m = columns(start, BLOCK_K, BLOCK_J)
                e, g, _ = wide_tile(
                    features, row_stride, channel_stride, rows, m, channels, peak, s, given,
                    class_q, c, top, ARITHMETIC, "evict_first",
                )  # fmt: skip
                rho = wide_rho(class_rho, c, m, channels)
                result = row_gradient(
                    e, g, mean_g, w * row_factor, rho, rho_mean, weight * row_factor
                )
                store_tile(gradient, rows, row_valid, m, channels, result, False)
    if value is not None and REDUCTION != "none":
        tl.store(value + slot, tl.sum(tl.sum(sums, 1), 0))
