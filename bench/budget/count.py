"""What a program asked of a GPU, and which lines of it did."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

import cmidd
import cmikernels


@dataclass
class Count:
    """What was asked for."""

    launches: int = 0
    calls: int = 0
    bytes: int = 0
    flops: int = 0
    copies: int = 0
    copied_bytes: int = 0
    waits: int = 0
    nanoseconds: int = 0  # of the device, as `prediction.py` guesses
    lines: Counter[str] = field(default_factory=Counter)
    """Of the program, which made copies or waited, with how often."""
    operations: Counter[str] = field(default_factory=Counter)
    """Launches by the name of the operation."""

    def __add__(self, other: Count) -> Count:
        """One after the other."""
        found = Count(*(getattr(self, name) + getattr(other, name) for name in NUMBERS))
        found.lines = _sum(self.lines, other.lines)
        found.operations = _sum(self.operations, other.operations)
        return found

    def __mul__(self, times: int) -> Count:
        """So many times."""
        found = Count(*(getattr(self, name) * times for name in NUMBERS))
        found.lines = Counter({key: n * times for key, n in self.lines.items()})
        found.operations = Counter({key: n * times for key, n in self.operations.items()})
        return found

    def __sub__(self, other: Count) -> Count:
        """What it asks for beyond another."""
        return self + other * -1


NUMBERS = ("launches", "calls", "bytes", "flops", "copies", "copied_bytes", "waits", "nanoseconds")


def _sum(one: Counter[str], other: Counter[str]) -> Counter[str]:
    found = Counter(one)
    found.update(other)
    return Counter({key: number for key, number in found.items() if number})


_OURS = tuple(f"{Path(str(each.__file__)).parent}/" for each in (cmidd, cmikernels))
_SKIPPED = tuple(f"{Path(file).parent}/" for file in (torch.__file__, __file__))


def line_here() -> str:
    """The innermost line of cmidd or cmikernels on the way here; else that of the caller's file."""
    frame: FrameType | None = sys._getframe(1)
    others = ""
    while frame is not None:
        path = frame.f_code.co_filename
        for folder in _OURS:
            if path.startswith(folder):
                return f"{Path(path).relative_to(Path(folder).parent)}:{_place(frame)}"
        if not others and not path.startswith((*_SKIPPED, "<")):
            others = f"{Path(path).name}:{_place(frame)}"
        frame = frame.f_back
    return others


def _place(frame: FrameType) -> str:
    """Its line, and the function that this is in."""
    around: FrameType | None = frame
    while around is not None and around.f_code.co_name.startswith("<"):  # a comprehension
        around = around.f_back
    return f"{frame.f_lineno} {'' if around is None else around.f_code.co_name}".strip()
