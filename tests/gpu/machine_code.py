"""Loops in NVIDIA's machine code, and how many instructions an element takes in them.

The kernels take one `MUFU.EX2` for every element, so an element of a loop takes as many
instructions as the way through it has, over the exponentials on that way.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass

_BRANCH = re.compile(r"\bBRA\b.*`\((\.L\w+)\)")
_END = re.compile(r"\b(BRA|EXIT|RET)\b")
_EXPONENTIAL = "MUFU.EX2"


@dataclass(frozen=True)
class Block:
    """Instructions without a branch or a label between them, and which blocks may follow."""

    instructions: tuple[str, ...]
    followers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop that takes exponentials, between its first block and the one that jumps back."""

    blocks: list[Block]
    first: int
    last: int

    def has(self, text: str) -> bool:
        """Whether an instruction of it has the text."""
        return bool(self._with(text))

    def an_element(self, text: str = "") -> float:
        """Instructions an element on the shortest way by an instruction that has the text."""
        ways = [
            self._shortest(self.first, i) + self._shortest(i, self.last)[1:]
            for i in self._with(text)
        ]
        code = min(map(self._code, ways), key=len)
        return len(code) / sum(_EXPONENTIAL in each for each in code)

    def _with(self, text: str) -> list[int]:
        return [
            i
            for i in range(self.first, self.last + 1)
            if any(text in each for each in self.blocks[i].instructions)
        ]

    def _code(self, way: list[int]) -> list[str]:
        return [each for i in way for each in self.blocks[i].instructions]

    def _shortest(self, start: int, end: int) -> list[int]:
        """Blocks on the way with the fewest instructions."""
        heap = [(0, start, [start])]
        seen: set[int] = set()
        while heap:
            length, i, way = heapq.heappop(heap)
            if i == end:
                return way
            if i in seen:
                continue
            seen.add(i)
            for follower in self.blocks[i].followers:
                if self.first < follower <= self.last:
                    cost = length + len(self.blocks[follower].instructions)
                    heapq.heappush(heap, (cost, follower, [*way, follower]))
        raise ValueError(f"no way from block {start} to {end}")


def loops(disassembly: str) -> list[Loop]:
    """Innermost loops with exponentials in what nvdisasm prints, in the order of the code."""
    blocks = list(_blocks(disassembly))
    ends = [(j, i) for i, block in enumerate(blocks) for j in block.followers if j <= i]
    found = [each for each in (Loop(blocks, *end) for end in ends) if each.has(_EXPONENTIAL)]
    around = [
        each
        for each in found
        for inner in found
        if inner is not each and each.first <= inner.first and inner.last <= each.last
    ]
    return sorted((each for each in found if each not in around), key=lambda each: each.first)


def _blocks(disassembly: str) -> Iterator[Block]:
    """Take the code apart at labels and branches."""
    parts: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            if parts[-1]:
                parts.append([])
            labels[label[1]] = len(parts) - 1
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            parts[-1].append(instruction[1])
            if _END.search(instruction[1]):
                parts.append([])
    for i, part in enumerate(parts):
        last = part[-1] if part else ""
        target = _BRANCH.search(last)
        # Whatever is not certain to leave goes on: a predicate, or a branch that has one inside.
        goes_on = not re.match(r"(EXIT|RET|BRA `)", last) and i + 1 < len(parts)
        yield Block(tuple(part), (*((labels[target[1]],) if target else ()), *((i + 1,) * goes_on)))
