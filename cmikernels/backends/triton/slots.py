"""A few large classes shared by many programs: each has a slot of a class's rows.

Class y owns the slots from offsets[y] // rows_per_slot + y on: as many as its rows need, and at
times one more, which is empty. So no table has to be made, nor the device waited for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cmikernels.backends.triton.tile import (
    PLAIN_INTEGERS,
    is_all_one,
    rho_of,
)

# Pivots in one step of the search for a slot's class.
SEARCH_WAYS = tl.constexpr(128)


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
    """Class of a slot, its sorted positions [begin, end), and the number of rows of the class."""
    if offsets is None:
        _, slots, _ = class_slots(slot * 0, offsets, rows_per_class, rows_per_slot)
        y = slot // slots
    else:
        y = slot * 0
        end_class = y + num_classes
        way = tl.arange(0, SEARCH_WAYS)
        while end_class - y > 1:
            step = (end_class - y + SEARCH_WAYS - 1) // SEARCH_WAYS
            pivot = y + (way + 1) * step
            inside = pivot < end_class
            starts = tl.load(offsets + pivot, mask=inside, other=0) // rows_per_slot + pivot
            passed = tl.sum((inside & (starts <= slot)).to(tl.int64), 0)
            y += passed * step
            end_class = tl.minimum(y + step, end_class)
    first, count = class_bounds(y, offsets, rows_per_class)
    first_slot, _, _ = class_slots(y, offsets, rows_per_class, rows_per_slot)
    begin = first + (slot - first_slot) * rows_per_slot
    end = tl.minimum(begin + rows_per_slot, first + count)
    return y, begin, end, count


@triton.jit
def block_rows(at, end, order, BLOCK_N: tl.constexpr):
    """Rows at a block of sorted positions, and which of them there are; both `[1, N]`.

    Beyond the end the last row is named again, which may be read like it.
    """
    positions = (at + tl.arange(0, BLOCK_N))[None, :]
    valid = positions < end
    rows = tl.minimum(positions, end - 1)
    if order is not None:
        rows = tl.load(order + rows)
    return rows, valid


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def weight_means(order, offsets, incoming, mean_weights, rows_per_class, BLOCK: tl.constexpr):
    """Mean incoming weight of the rows of each class."""
    y = tl.program_id(0).to(tl.int64)
    begin, count = class_bounds(y, offsets, rows_per_class)
    total = tl.zeros((1, BLOCK), mean_weights.dtype.element_ty)
    for at in range(begin, begin + count, BLOCK):
        rows, valid = block_rows(at, begin + count, order, BLOCK)
        total += tl.load(incoming + rows, mask=valid, other=0.0)
    tl.store(mean_weights + y, tl.sum(tl.sum(total, 1), 0) / tl.maximum(count, 1))


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
def class_means(
    sums, weighted_sums, offsets, incoming, q, rho, rows_per_class, rows_per_slot, num_classes,
    channels, ARITHMETIC: tl.constexpr, REDUCTION: tl.constexpr, UNLESS_ONE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Centroid, and rho, of each class from its slots' sums, in their order."""
    blocks = (channels + BLOCK_M - 1) // BLOCK_M  # see slot_column_sums
    y = (tl.program_id(0) // blocks).to(tl.int64)
    if UNLESS_ONE:
        if is_all_one(incoming, y + tl.arange(0, 1), num_classes, REDUCTION == "class"):
            return
    begin, slots, count = class_slots(y, offsets, rows_per_class, rows_per_slot)
    m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
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


@triton.jit(do_not_specialize=PLAIN_INTEGERS)
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
    for at in tl.range(begin, end, BLOCK, num_stages=2):
        place = at + tl.arange(0, BLOCK)
        total += tl.load(parts + place, mask=place < end, other=0.0).to(tl.float64)
    tl.store(value + y, (tl.sum(total, 0) * scale).to(value.dtype.element_ty))
