"""Which kernels serve a call, with what tiles: from its sizes alone, nothing tuned on first use.

tiles    every class fits a tile in registers: one launch reads once and writes once
sweeps   larger classes, many of them or small: a program each, reading twice, then from L2
slots    few large classes: several programs each; sums, centroids, then value and gradient
wide     rows wider than a tile: the same, column by column
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

# Elements of a float32 tile; float64 has a quarter. Above the first, registers run out.
_CLASS_TILE = 8192  # a class in registers
_SMALL_TILE = 1024  # small classes share a tile up to this
_SWEPT_CLASS = 32768  # a class that one program serves, however few there are
_WIDEST_ROW = 8192
_WIDE_COLUMNS = 1024  # of a tile, for rows beyond that
_ELEMENTS_PER_WARP = 512
_PROGRAMS_PER_PROCESSOR = 4


@dataclass(frozen=True)
class Chip:
    """What plans depend on: multiprocessors, bytes of L2 cache, what a program computes at once."""

    processors: int
    cache_bytes: int
    row_tile: int = 2048  # elements, four bytes each, of a tile of rows of a larger class


@dataclass(frozen=True)
class Plan:
    """How a call is computed."""

    kind: str  # "tiles", "sweeps", "slots" or "wide"
    programs: int
    parts: int  # of the value: one for each group of classes, class or slot
    block_classes: int
    block_rows: int
    block_channels: int
    num_warps: int
    rows_per_slot: int | None  # of slots and wide


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
    width = _power_of_2(channels)
    rows = _power_of_2(largest)
    # A tile for the largest class is wasted on classes that are much smaller.
    lopsided = num_classes * largest > 4 * num_rows and rows * width * fit > _SMALL_TILE
    if rows * width * fit <= _CLASS_TILE and not lopsided:
        together = max(1, _SMALL_TILE // fit // (rows * width))
        together = min(together, _power_of_2(max(1, num_classes // programs)))
        groups = ceil_div(num_classes, together)
        warps = _warps(together * rows * width * fit)
        return Plan("tiles", min(groups, programs), groups, together, rows, width, warps, None)
    if width * fit > _WIDEST_ROW:
        kind, block_rows, block_channels = "wide", chip.row_tile // _WIDE_COLUMNS, _WIDE_COLUMNS
    else:
        kind, block_rows, block_channels = "slots", max(1, chip.row_tile // fit // width), width
    warps = _warps(block_rows * block_channels * fit)
    if kind == "slots" and not lopsided:
        class_bytes = ceil_div(num_rows, num_classes) * channels * element_size
        cached = 2 * class_bytes * chip.processors <= chip.cache_bytes
        # A small problem takes as long as its launches do, so few programs may serve it.
        small = largest * channels <= _SWEPT_CLASS
        if small and num_classes < chip.processors:  # and have a multiprocessor each
            block_rows = min(rows, max(block_rows, _CLASS_TILE // 2 // fit // width))
            warps = _warps(block_rows * width * fit)
        if small or num_classes >= (chip.processors if cached else programs):
            shape = (1, block_rows, width)
            return Plan("sweeps", num_classes, num_classes, *shape, warps, None)
    rows_per_slot = ceil_div(ceil_div(num_rows, programs), block_rows) * block_rows
    slots = num_classes * ceil_div(largest, rows_per_slot)
    if ragged:
        slots = num_rows // rows_per_slot + num_classes
    return Plan(kind, slots, slots, 1, block_rows, block_channels, warps, rows_per_slot)


def ceil_div(a: int, b: int) -> int:
    """Round a / b up."""
    return -(-a // b)


def _power_of_2(number: int) -> int:
    """The smallest power of 2 that is at least a number."""
    return 1 << max(number - 1, 0).bit_length()


def _warps(elements: int) -> int:
    return min(16, max(4, elements // _ELEMENTS_PER_WARP))
