"""Classes that fit a program's registers: one read of the features, one write of the gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from cmikernels.backends.triton.tile import (
    PLAIN_INTEGERS,
    add_exactly,
    columns,
    divergences,
    exponent_scale,
    given_centroids,
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
)


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def class_tiles(
    features, row_stride, channel_stride, order, offsets, given, incoming, value, gradient, means,
    num_classes, rows_per_class, channels, inverse_tau: tl.float64, weight: tl.float64,
    ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr, UNLESS_ONE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Everything about groups of BLOCK_C classes of at most BLOCK_N rows.

    `value` is each program's sum (reduction "total"), each class's or each row's number. A program
    takes several groups, so that the next one is on its way while one is computed.
    """
    if UNLESS_ONE and REDUCTION == "total":
        if tl.load(incoming) == 1.0:
            return
    s = exponent_scale(inverse_tau, ARITHMETIC)
    inverse_tau = tl.full((), inverse_tau, ARITHMETIC)
    weight = tl.full((), weight, ARITHMETIC)
    n = tl.arange(0, BLOCK_N)
    m = columns(0, BLOCK_K, BLOCK_J)
    groups = (num_classes + BLOCK_C - 1) // BLOCK_C
    part = tl.zeros((BLOCK_C, BLOCK_N), ARITHMETIC)
    lost = tl.zeros((BLOCK_C, BLOCK_N), ARITHMETIC)
    for group in tl.range(tl.program_id(0), groups, tl.num_programs(0), num_stages=2):
        c = (tl.arange(0, BLOCK_C) + group * BLOCK_C).to(tl.int64)
        c_valid = c < num_classes
        if UNLESS_ONE and REDUCTION == "class":
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
        valid = row_valid[:, None, :, None] & (m < channels)[None, :, None, :]
        z = load_tile(
            features, row_stride, channel_stride, rows, valid, m, ARITHMETIC, "evict_first"
        )
        # A row that is not there is -inf throughout.
        v, e = softmax_tile(z, tl.where(row_valid, row_max(z), 0.0), s, True)
        total = tl.where(row_valid, row_sum(e), 1.0)
        inverse_total = tl.where(row_valid, 1.0 / total, 0.0)

        size = tl.maximum(count, 1).to(ARITHMETIC)
        q_valid = c_valid[:, None, None] & (m < channels)[None, :, :]
        if given is None:
            q = tl.sum(e * inverse_total[:, None, :, None], 2) / size[:, None, None]
            missing = tl.zeros_like(size)
            # A class of one row is its own centroid: exactly nothing, or NaN if the row is.
            has_peers = tl.where(count == 1, 0.0, 1.0).to(ARITHMETIC)
        else:
            q, mass = given_centroids(given, c, m, q_valid, channels, ARITHMETIC)
            missing = (1.0 - mass).to(ARITHMETIC)
            has_peers = tl.full((BLOCK_C,), 1.0, ARITHMETIC)
        if means is not None:
            tl.store(means + c[:, None, None] * channels + m[None, :, :], q, mask=q_valid)

        if value is not None or gradient is not None:
            top = tl.minimum(tl.max(tl.max(q, 1), 1), 1.0)  # a given one may be beyond 1
            g = log_ratio(v, log_target(q, top[:, None, None], ARITHMETIC), True)
            mean_g = row_sum(e * g) * inverse_total
        if value is not None:
            kl = has_peers[:, None] * divergences(
                e, g, mean_g, tl.log2(total * top[:, None]), inverse_total, q,
                missing[:, None], row_valid, ARITHMETIC,
            )  # fmt: skip
            if REDUCTION == "none":
                tl.store(value + rows, kl * weight, mask=row_valid)
            elif REDUCTION == "class":
                tl.store(value + c, tl.sum(kl, 1) * weight / size, mask=c_valid)
            else:
                part, lost = add_exactly(part, lost, kl)
        if gradient is not None:
            row_scale = weight
            if REDUCTION == "class":
                row_scale = weight / size[:, None]
            some_class = tl.minimum(c, num_classes - 1)[:, None]
            w = row_weights(row_scale, incoming, rows, some_class, row_valid, REDUCTION)
            row_factor = has_peers[:, None] * inverse_total * inverse_tau
            rho = None
            rho_mean = None
            if (REDUCTION == "none" and incoming is not None) and given is None:
                excess = (w - (tl.sum(w, 1) / size)[:, None]) * inverse_total
                weighted = tl.sum(e * excess[:, None, :, None], 2)
                rho = rho_of(weighted, q, size[:, None, None], ARITHMETIC)
                rho_mean = row_sum(e * rho[:, :, None, :]) * inverse_total
            result = row_gradient(e, g, mean_g, w * row_factor, rho, rho_mean, row_factor)
            store_tile(gradient, rows, row_valid, m, channels, result, False)
    if value is not None and REDUCTION == "total":
        tl.store(value + tl.program_id(0), tl.sum(tl.sum(part, 1), 0))
