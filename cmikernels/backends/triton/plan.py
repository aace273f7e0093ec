"""Which kernels serve a call, with what tiles: from its sizes alone, nothing tuned on first use.

tiles    tiny classes: several in a tile in registers; one launch reads once and writes once
sweeps   a program for each class, reading it twice, the second time from L2
slots    few large classes: several programs each; sums, centroids, then value and gradient
wide     rows wider than a tile: the same, column by column
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

# A class of up to an eighth of a tile of rows is held in registers, with others up to half of one.
# Beyond that every warp would repeat the logarithms of Q, which costs more than reading twice.
_HELD_CLASS, _HELD_TOGETHER = 8, 2
_SWEPT_CLASS = 32768  # elements of a class that one program serves, however few classes there are
_WIDEST_ROW = 8192  # float32, as all of these; float64 has a quarter of it, for its registers
_WIDE_COLUMNS = 1024  # of a tile, for rows beyond that
_PROGRAMS_PER_PROCESSOR = 4
_ROWS_PER_SUM = 16  # at least, so that sums take little memory beside the features
_RESIDENT_WARPS = 16  # that a multiprocessor has registers for
_MOST_WARPS = 16  # of a program


@dataclass(frozen=True)
class Chip:
    """What plans depend on: multiprocessors, bytes of L2 cache, what a program computes at once."""

    processors: int
    cache_bytes: int
    row_tile: int = 2048  # float32 elements of a tile of rows, for four warps


@dataclass(frozen=True)
class Plan:
    """How a call is computed."""

    kind: str  # "tiles", "sweeps", "slots" or "wide"
    programs: int  # each of which has a part of the value
    block_classes: int
    block_rows: int
    block_channels: int
    num_warps: int
    rows_per_slot: int | None = None  # of slots and wide: a program's, for value and gradient
    rows_per_sum: int | None = None  # and for sums, of which there are to be few
    sums: int = 0


@functools.lru_cache(maxsize=4096)
def make_plan(
    num_rows: int,
    num_classes: int,
    largest: int,
    channels: int,
    element_size: int,
    ragged: bool,
    weighted: bool,
    chip: Chip,
) -> Plan:
    """Choose from N, C, the rows of the largest class, M, bytes of a feature, and the chip.

    `weighted`: the rows' weights differ, so that a second number is summed beside each probability.
    """
    fit = 4 if element_size == 8 else 2 if weighted else 1
    programs = _PROGRAMS_PER_PROCESSOR * chip.processors
    width, rows = power_of_2(channels), power_of_2(largest)
    tile = chip.row_tile // fit
    if rows * width <= tile // _HELD_CLASS:
        together = tile // _HELD_TOGETHER // (rows * width)
        together = min(together, power_of_2(max(1, num_classes // programs)))
        groups = ceil_div(num_classes, together)
        return Plan("tiles", min(groups, programs), together, rows, width, 4)
    # A class much larger than the others would keep its program busy long after theirs.
    lopsided = num_classes * largest > 4 * num_rows
    # A small problem takes as long as its launches do, so few programs may serve it.
    enough = num_classes >= programs or largest * channels <= _SWEPT_CLASS
    narrow = width * fit <= _WIDEST_ROW
    if narrow and enough and not lopsided:
        class_bytes = ceil_div(num_rows, num_classes) * channels * element_size
        warps = _sweep_warps(num_classes, class_bytes, chip, 4 * width // tile)
        block_rows = min(rows, tile * warps // 4 // width)
        return Plan("sweeps", num_classes, 1, block_rows, width, warps)
    block_channels = width if narrow else _WIDE_COLUMNS
    block_rows = max(1, tile // block_channels)
    warps = min(_MOST_WARPS, max(4, 4 * block_channels // tile))
    rows_per_slot = ceil_div(ceil_div(num_rows, programs), block_rows) * block_rows
    rows_per_sum = ceil_div(max(rows_per_slot, _ROWS_PER_SUM), block_rows) * block_rows
    slots, sums = (
        num_rows // each + num_classes if ragged else num_classes * ceil_div(largest, each)
        for each in (rows_per_slot, rows_per_sum)
    )
    kind = "slots" if narrow else "wide"
    shape = (1, block_rows, block_channels)
    return Plan(kind, slots, *shape, warps, rows_per_slot, rows_per_sum, sums)


def _sweep_warps(num_classes: int, class_bytes: int, chip: Chip, least: int) -> int:
    """As few warps as fill the chip, which wastes least, and as many as keep its classes in L2."""
    resident = _RESIDENT_WARPS * chip.processors
    cached = ceil_div(4 * resident * class_bytes, 3 * chip.cache_bytes)
    if cached > _MOST_WARPS:  # they will not stay there anyway
        cached = 1
    return min(_MOST_WARPS, power_of_2(max(resident // num_classes, cached, least, 1)))


def ceil_div(a: int, b: int) -> int:
    """Round a / b up."""
    return -(-a // b)


def power_of_2(number: int) -> int:
    """The smallest power of 2 that is at least a number."""
    return 1 << max(number - 1, 0).bit_length()
