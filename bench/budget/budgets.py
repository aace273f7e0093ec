"""What each loop may ask of a GPU, and what it is to ask for.

A budget is what was counted when it was written down. Change it with the code that lowers it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from bench.budget.count import Count


class Budget(NamedTuple):
    """The most that a part of a loop may ask for."""

    launches: int
    copies: int
    waits: int
    megabytes: int  # that operations read and write
    gigaflops: int  # of convolutions


class Goal(NamedTuple):
    """What a part is to come down to, as far as it was set out."""

    launches: int | None = None
    copies: int | None = None
    waits: int | None = None


BUDGETS: dict[str, dict[str, Budget]] = {
    "DM, ipc 10": {
        "step": Budget(194, 35, 35, 5680, 281),
    },
    "DM, ipc 50": {
        "step": Budget(194, 35, 35, 7747, 362),
    },
    "DM + CMI, ipc 10": {
        "step": Budget(463, 35, 35, 9067, 503),
    },
    "DM + CMI, ipc 50": {
        "step": Budget(1511, 35, 35, 24684, 1472),
    },
    "DM + CMI, log": {
        "report": Budget(4, 0, 3, 4, 0),
    },
    "DC, ipc 10": {
        "network": Budget(0, 11, 11, 0, 0),
        "update": Budget(238, 8, 8, 18526, 841),
        "inner epoch": Budget(33, 2, 2, 443, 30),
    },
    "DSA, ipc 10": {
        "network": Budget(0, 11, 11, 0, 0),
        "update": Budget(399, 34, 34, 18955, 841),
        "inner epoch": Budget(53, 3, 3, 451, 30),
    },
    "MTT, ipc 10": {
        "iteration of one step": Budget(202, 6, 6, 2096, 119),
        "student step": Budget(169, 4, 4, 2009, 119),
    },
    "IDC, ipc 10": {
        "network": Budget(1, 11, 11, 3, 0),
        "training": Budget(2641, 193, 193, 10321, 609),
        "update": Budget(311, 15, 15, 24974, 1078),
    },
    "IDM, ipc 10": {
        "step": Budget(216, 35, 35, 7227, 341),
        "training": Budget(938, 82, 82, 23010, 1523),
    },
    "IID, ipc 10": {
        "step": Budget(367, 36, 36, 9156, 503),
    },
    "NCFM, ipc 10": {
        "step": Budget(987, 66, 67, 10473, 423),
    },
    "five ConvNets on ipc 10": {
        "epoch": Budget(100, 11, 12, 4059, 149),
        "step": Budget(100, 11, 11, 4059, 149),
        "test of 500 images": Budget(18, 0, 1, 8636, 254),
    },
    "five ResNet-18 on real images": {
        "step": Budget(263, 2, 2, 70323, 4262),
    },
    "CMI, 10 x 50": {
        "call": Budget(1316, 0, 0, 16919, 1111),
    },
    "CMI, 100 x 50": {
        "call": Budget(13106, 0, 0, 169184, 11109),
    },
    "SRe2L, ipc 10": {
        "step": Budget(714, 0, 0, 7620, 223),
    },
}

GOALS: dict[tuple[str, str], Goal] = {
    ("DM + CMI, ipc 10", "step"): Goal(260, 1, 0),
    ("DM + CMI, ipc 50", "step"): Goal(300, 1, 0),
    ("DC, ipc 10", "inner epoch"): Goal(50, 0),
    ("DSA, ipc 10", "update"): Goal(330, 1, 0),
    ("DSA, ipc 10", "inner epoch"): Goal(50, 0),
    ("MTT, ipc 10", "student step"): Goal(130),
    ("five ConvNets on ipc 10", "epoch"): Goal(waits=0),
    ("CMI, 100 x 50", "call"): Goal(1500),
}


def asked(count: Count) -> Budget:
    """A count in the units of a budget."""
    megabytes, gigaflops = math.ceil(count.bytes / 1e6), math.ceil(count.flops / 1e9)
    return Budget(count.launches, count.copies, count.waits, megabytes, gigaflops)


def excess(loop: str, part: str, count: Count) -> list[str]:
    """In words, what a part of a loop asks for beyond its budget, and which lines do most of it."""
    found, budget = asked(count), BUDGETS[loop][part]
    lines = [
        f"{loop}, {part}: {getattr(found, name)} {name}, budget {getattr(budget, name)}"
        for name in Budget._fields
        if getattr(found, name) > getattr(budget, name)
    ]
    if lines:
        most = [*count.lines.most_common(8), *count.operations.most_common(8)]
        lines += [f"    {times} x {what}" for what, times in most]
    return lines
