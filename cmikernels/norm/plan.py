"""The tile of a Triton program: from the sizes of a call alone, nothing tuned on first use.

A program has some groups of channels of one row. Groups that fit a tile are held in registers, so
that all is read once and written once. Larger ones are swept window by window, several times.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cmikernels.backends.triton.plan import ceil_div, power_of_2

MOST_CHANNELS_OF_GROUP = 1024
# Float32 numbers of maps that 16 warps hold beside what they make of them, by order.
_HELD = (8192, 8192, 4096)
_SWEPT = 2048  # of a tile of a larger group
_SMALL = 1024  # that a program takes at least, where its groups are smaller
_LINE_BYTES = 128  # of channels that follow one another, to be read together
# In the second derivative a thread has a dozen numbers of each of its channels.
_MOST_CHANNELS_SECOND = 8
_MOST_WARPS = 16
# Numbers of maps that a thread has, by order: the second derivative keeps most beside them.
_NUMBERS_OF_THREAD = (16, 16, 8)


@dataclass(frozen=True)
class Plan:
    """A tile: groups, channels of each, windows of each map; all are powers of 2."""

    block_groups: int
    block_channels: int
    block_windows: int
    held: bool  # whether the tile has all windows
    even: bool  # whether every program's tile is full
    num_warps: int


@functools.lru_cache(maxsize=4096)
def make_plan(
    order: int,
    groups: int,
    channels: int,
    height: int,
    width: int,
    pool: int,
    element_size: int,
    channels_last: bool,
) -> Plan:
    """Choose from the order of the derivative, the groups, the maps and the layout."""
    entries = pool * pool
    windows = ceil_div(height, pool) * ceil_div(width, pool)
    of_group = channels // groups
    block_channels, block_windows = power_of_2(of_group), power_of_2(windows)
    wide = 2 if element_size == 8 else 1
    group = block_channels * block_windows * entries
    line = _LINE_BYTES // element_size
    if order == 2:
        line = min(line, _MOST_CHANNELS_SECOND)
    held = group <= _HELD[order] // wide
    if held:
        together = _SMALL // group
        if channels_last:
            together = min(line // block_channels, _HELD[order] // wide // group)
    else:
        together = line // block_channels if channels_last else 1
        together = min(together, _SWEPT // (block_channels * entries))
    block_groups = min(power_of_2(groups), max(1, together))
    if not held:
        pixels = _SWEPT // wide // (block_groups * block_channels * entries)
        block_windows = min(block_windows, max(1, pixels))
    tile = block_groups * block_channels * block_windows * entries
    even = (
        groups % block_groups == 0
        and of_group == block_channels
        and windows % block_windows == 0
        and height % pool == 0
        and width % pool == 0
    )
    warps = tile * wide // (32 * _NUMBERS_OF_THREAD[order])
    return Plan(
        block_groups, block_channels, block_windows, held, even, min(_MOST_WARPS, max(1, warps))
    )
