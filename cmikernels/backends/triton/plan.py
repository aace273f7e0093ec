"""Which kernels serve a call, with what tiles: from its sizes alone, nothing tuned on first use.

tiles    tiny classes: several in a tile in registers; one launch reads once and writes once
sweeps   a program for each class, reading it twice, the second time from L2
slots    few large classes: several programs each; sums, centroids, then value and gradient
wide     rows wider than a tile: the same, column by column
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

# Elements of a float32 tile; float64 has a quarter of them, for its registers.
_CLASS_TILE = (
    1024  # of whole classes: beyond that, the logarithms of Q cost more than reading twice
)
_LATENCY_TILE = 4096  # of rows, where a program has a multiprocessor to itself
_WIDEST_ROW = 8192
_WIDE_COLUMNS = 1024  # of a tile, for rows beyond that
_SWEPT_CLASS = 32768  # elements of a class that one program serves, however few there are
_PROGRAMS_PER_PROCESSOR = 4
_ELEMENTS_PER_WARP = 512


@dataclass(frozen=True)
class Chip:
    """What plans depend on: multiprocessors, bytes of L2 cache, what a program computes at once."""

    processors: int
    cache_bytes: int
    row_tile: int = 2048  # float32 elements of a tile of rows


@dataclass(frozen=True)
class Plan:
    """How a call is computed."""

    kind: str  # "tiles", "sweeps", "slots" or "wide"
    programs: int  # each of which has a part of the value
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
    width, rows = _power_of_2(channels), _power_of_2(largest)
    if rows * width * fit <= _CLASS_TILE:
        together = min(
            _CLASS_TILE // fit // (rows * width), _power_of_2(max(1, num_classes // programs))
        )
        groups = ceil_div(num_classes, together)
        return Plan("tiles", min(groups, programs), together, rows, width, 4, None)
    tile = chip.row_tile // fit
    if width * fit > _WIDEST_ROW:
        kind, block_rows, block_channels = "wide", max(1, tile // _WIDE_COLUMNS), _WIDE_COLUMNS
    else:
        kind, block_rows, block_channels = "slots", max(1, tile // width), width
    warps = _warps(block_rows * block_channels * fit)
    # A class much larger than the others would keep its program busy long after theirs.
    lopsided = num_classes * largest > 4 * num_rows
    if kind == "slots" and not lopsided:
        class_bytes = ceil_div(num_rows, num_classes) * channels * element_size
        cached = 2 * class_bytes * chip.processors <= chip.cache_bytes
        # A small problem takes as long as its launches do, so few programs may serve it.
        small = largest * channels <= _SWEPT_CLASS
        if small and num_classes < chip.processors:
            block_rows = min(rows, max(block_rows, _LATENCY_TILE // fit // width))
            warps = _warps(block_rows * width * fit)
        elif num_classes >= 2 * programs and warps == 4:
            # Smaller programs fill the chip too, and may leave fewer rows of a tile empty.
            options = [(w, block_rows * w // 4) for w in (4, 2, 1) if block_rows * w >= 4]
            warps, block_rows = min(options, key=lambda each: -largest % each[1])
        if small or num_classes >= (chip.processors if cached else programs):
            shape = (1, block_rows, width)
            return Plan("sweeps", num_classes, *shape, warps, None)
    rows_per_slot = ceil_div(ceil_div(num_rows, programs), block_rows) * block_rows
    slots = num_classes * ceil_div(largest, rows_per_slot)
    if ragged:
        slots = num_rows // rows_per_slot + num_classes
    return Plan(kind, slots, 1, block_rows, block_channels, warps, rows_per_slot)


def ceil_div(a: int, b: int) -> int:
    """Round a / b up."""
    return -(-a // b)


def _power_of_2(number: int) -> int:
    """The smallest power of 2 that is at least a number."""
    return 1 << max(number - 1, 0).bit_length()


def _warps(elements: int) -> int:
    return min(16, max(4, elements // _ELEMENTS_PER_WARP))
