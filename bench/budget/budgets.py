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
    calls: int  # of the CPU; that of a graph is one
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
        "step": Budget(64, 64, 1, 0, 5276, 281),
    },
    "DM, ipc 50": {
        "step": Budget(64, 64, 1, 0, 7087, 362),
    },
    "DM + CMI, ipc 10": {
        "step": Budget(202, 202, 1, 0, 8574, 503),
    },
    "DM + CMI, ipc 50": {
        "step": Budget(202, 202, 1, 0, 23219, 1472),
    },
    "DM + CMI, log": {
        "report": Budget(4, 4, 0, 3, 4, 0),
    },
    "DC, ipc 10": {
        "network": Budget(11, 11, 1, 0, 3, 0),
        "update": Budget(216, 216, 1, 0, 15425, 841),
        "inner epoch": Budget(34, 3, 0, 0, 443, 30),
    },
    "DSA, ipc 10": {
        "network": Budget(11, 11, 1, 0, 3, 0),
        "update": Budget(222, 222, 1, 0, 15527, 841),
        "inner epoch": Budget(35, 3, 0, 0, 446, 30),
    },
    "MTT, ipc 10": {
        "iteration of one step": Budget(159, 159, 1, 0, 2005, 119),
        "student step": Budget(130, 130, 0, 0, 1975, 119),
    },
    "IDC, ipc 10": {
        "network": Budget(12, 12, 1, 0, 6, 0),
        "training": Budget(1983, 243, 1, 0, 9636, 610),
        "update": Budget(217, 217, 1, 0, 24384, 1078),
    },
    "IDM, ipc 10": {
        "step": Budget(106, 106, 1, 0, 6641, 342),
        "training": Budget(858, 78, 4, 0, 22867, 1523),
    },
    "IID, ipc 10": {
        "step": Budget(234, 234, 1, 0, 8752, 504),
    },
    "NCFM, ipc 10": {
        "step": Budget(608, 608, 1, 0, 9688, 479),
    },
    "five ConvNets on ipc 10": {
        "epoch": Budget(132, 3, 0, 0, 2258, 149),
        "step": Budget(132, 3, 0, 0, 2258, 149),
        "test of 500 images": Budget(39, 39, 0, 0, 4339, 254),
    },
    "ResNet-18 on real images": {
        "step": Budget(166, 2, 0, 0, 8549, 853),
    },
    "CMI, 10 x 50": {
        "call": Budget(137, 137, 0, 0, 16114, 1111),
    },
    "CMI, 100 x 50": {
        "call": Budget(1316, 1316, 0, 0, 161140, 11109),
    },
    "SRe2L, ipc 10": {
        "step": Budget(714, 714, 0, 0, 7620, 223),
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
    return Budget(count.launches, count.calls, count.copies, count.waits, megabytes, gigaflops)


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
