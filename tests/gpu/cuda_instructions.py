"""Instructions that the CUDA kernels issue for an element, counted in the built extension.

python -m tests.gpu.cuda_instructions
python -m tests.gpu.cuda_instructions --extension path/to/_native.so --json out/instructions.json

A loop over rows takes one of several ways: with or without the gradient, with one of the forms of
the value. Counted are the least instructions from the start of a loop back to it, in the machine
code for sm_90 of full rows, with the marks of the way on them: so many exponentials, stores, or
coefficients of a series. Work on columns is not in a loop over rows, and so is not counted, but for
tiny classes: there the loop is over classes, and everything is in it.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.harness.tables import table
from tests.gpu.cuda_resources import FEATURE_CODES, cuobjdump, parse_arguments
from tests.gpu.triton_resources import conclude

TARGET = 90
ENTRIES = 32  # of a row, that a thread has
FEATURES = ("Float32", "Bfloat16", "Float16")
LANES = (8, 16, 32)  # of a team; in this order in `enum class Team`
TINY_LANES = LANES[:1]

# The value is added up in double precision; a series takes the largest of two squares and what came
# before them.
_EXPONENTIAL, _STORE, _VALUE, _SERIES = "MUFU.EX2", "STG.E.128", "DADD", "VIMNMX3"


class Way(NamedTuple):
    """A way round a row loop: marks that are on it, how often at least, and those that are not."""

    needs: Mapping[str, int]
    lacks: tuple[str, ...] = ()


class Count(NamedTuple):
    """The least instructions of a way in one compiled kernel."""

    features: str
    lanes: int
    way: str
    instructions: float  # an element


class Block(NamedTuple):
    """Instructions without a branch between them, and the numbers of the blocks that may follow."""

    instructions: list[str]
    following: list[int]


def ways(features: str) -> dict[str, Way]:
    """All that are counted, by name; the first is the first sweep, and the others the second."""
    row_loads = ENTRIES * (4 if features == "Float32" else 2) // 16
    rounds = {_EXPONENTIAL: ENTRIES}
    gradient = {**rounds, _STORE: row_loads}
    both = {**gradient, _VALUE: 1}
    # The row, and two column vectors in place of one.
    balanced = {**both, "LDS.128": row_loads + 2 * ENTRIES // 4}
    series = {**both, _SERIES: ENTRIES // 2}
    return {
        "sums": Way({**rounds, "MUFU.RCP": 1, "STS": 1}, (_STORE, _VALUE)),
        "value": Way({**rounds, _VALUE: 1}, (_STORE, _SERIES)),
        "gradient": Way(gradient, (_VALUE,)),
        "gradient, direct value": Way(both, (_SERIES,)),
        "gradient, balanced value": Way(balanced, (_SERIES,)),
        # The coefficients of x^3 of the two polynomials in csrc/math/cmi_math.hpp.
        "gradient, short series": Way({**series, "-0.00133970": ENTRIES}),
        "gradient, long series": Way({**series, "-0.00133297": ENTRIES}),
    }


def ways_of_tiny_classes(features: str) -> dict[str, Way]:
    """Those round the loop over classes that a warp holds: all that is done for a class."""
    rounds = {_EXPONENTIAL: ENTRIES, _VALUE: 1}
    stores = ENTRIES * (4 if features == "Float32" else 2) // 16
    return {
        "tiny class, value": Way(rounds, (_STORE, _SERIES)),
        "tiny class, gradient and value": Way({**rounds, _STORE: stores}, (_SERIES,)),
    }


def counts_of(extension: Path) -> list[Count]:
    """Every way of every kernel of full rows in a file, but those of tiny classes."""
    return _counts_of(extension, "class_kernel", LANES, ways)


def tiny_counts_of(extension: Path) -> list[Count]:
    """Likewise of the kernel of tiny classes, of 4 rows of 256 channels."""
    return _counts_of(extension, "tiny_kernel", TINY_LANES, ways_of_tiny_classes)


def _counts_of(
    extension: Path,
    kernel: str,
    teams: tuple[int, ...],
    ways_of: Callable[[str], dict[str, Way]],
) -> list[Count]:
    symbols = {
        _symbol(kernel, features, team): (features, lanes)
        for features in FEATURES
        for team, lanes in enumerate(teams)
    }
    options = ["-sass", "-arch", f"sm_{TARGET}", "-fun", ",".join(symbols)]
    listings = read_listings(cuobjdump(options, extension))
    if missing := symbols.keys() - listings.keys():
        raise RuntimeError(f"cuobjdump: expected {sorted(missing)} for sm_{TARGET}, got none")
    found = []
    for symbol, (features, lanes) in symbols.items():
        blocks = blocks_of(listings[symbol])
        for name, way in ways_of(features).items():
            instructions = fewest(blocks, way)
            if instructions is None:
                raise RuntimeError(f"expected a way {name!r} in {symbol}, got none")
            found.append(Count(features, lanes, name, instructions / ENTRIES))
    return found


def _symbol(kernel: str, features: str, team: int) -> str:
    form = "" if kernel == "tiny_kernel" else "LNS_4FormE0E"  # whose rows are always full
    arguments = f"{FEATURE_CODES[features]}{form}LNS_4TeamE{team}E"
    return f"_ZN4cmik3gpu{len(kernel)}{kernel}I{arguments}EEvNS_4TaskE"


def read_listings(text: str) -> dict[str, dict[int, str]]:
    """Take apart what cuobjdump prints of machine code: instructions by address, by symbol."""
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)
    return {
        symbol: {
            int(address, 16): instruction
            for address, instruction in re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?) *;", listing)
        }
        for symbol, listing in zip(parts[1::2], parts[2::2], strict=True)
    }


def blocks_of(listing: Mapping[int, str]) -> list[Block]:
    """Divide a kernel where it branches; blocks are numbered such that only loops go back."""
    addresses = sorted(listing)
    starts = {addresses[0]}
    for address, after in itertools.pairwise(addresses):
        target = _target(listing[address])
        if target is not None:
            starts |= {target, after}
        elif _ends(listing[address]):
            starts.add(after)
    members: dict[int, list[int]] = {}
    for address in addresses:
        if address in starts:
            block = members[address] = []
        block.append(address)
    following: dict[int, list[int]] = {}
    for start, after in itertools.zip_longest(members, list(members)[1:]):
        last = listing[members[start][-1]]
        target = _target(last)
        goes_on = _conditional(last) or (target is None and not _ends(last))
        both = (target, after if goes_on else None)
        following[start] = [to for to in both if to is not None]
    numbers = {start: number for number, start in enumerate(_ordered(following, addresses[0]))}
    return [
        Block([listing[each] for each in members[start]], [numbers[to] for to in following[start]])
        for start in numbers
    ]


def _ordered(following: Mapping[int, list[int]], first: int) -> list[int]:
    """What can be reached, each before what follows it but for loops: in reverse postorder."""
    finished: list[int] = []
    entered = {first}
    stack = [(first, iter(following[first]))]
    while stack:
        start, rest = stack[-1]
        to = next((to for to in rest if to not in entered), None)
        if to is None:
            finished.append(start)
            stack.pop()
        else:
            entered.add(to)
            stack.append((to, iter(following[to])))
    return finished[::-1]


def _target(instruction: str) -> int | None:
    """Where a branch goes. That of a warp that does not keep together (BRA.DIV) is not taken."""
    found = re.search(r"\bBRA(?!\.DIV)\b.*0x([0-9a-f]+)", instruction)
    return int(found[1], 16) if found else None


def _ends(instruction: str) -> bool:
    """Whether what comes after is not this loop: what a call costs is not counted."""
    return re.search(r"\b(EXIT|RET|CALL|BRX|JMP|JMX)\b", instruction) is not None


def _conditional(instruction: str) -> bool:
    return re.search(r"^@|\b!?U?P\d\b", instruction) is not None


def fewest(blocks: list[Block], way: Way) -> int | None:
    """The least instructions from the start of any loop back to it; loops within are done once."""
    gains = [_gain(block, way) for block in blocks]
    heads = {to for number, block in enumerate(blocks) for to in block.following if to <= number}
    best = None
    for head in sorted(heads, reverse=True):  # inner loops first
        best = _around(blocks, gains, head, tuple(way.needs.values()), best)
    return best


def _gain(block: Block, way: Way) -> tuple[int, ...] | None:
    """What passing through it adds to the needs; None where the way does not."""

    def times(mark: str) -> int:
        return sum(mark in each for each in block.instructions)

    return None if any(map(times, way.lacks)) else tuple(map(times, way.needs))


def _around(
    blocks: list[Block],
    gains: list[tuple[int, ...] | None],
    head: int,
    wanted: tuple[int, ...],
    best: int | None,
) -> int | None:
    """Dijkstra's search, over blocks and what has been passed of the needs; the best so far."""
    loop = {head}
    for number in range(len(blocks) - 1, head, -1):
        if any(to == head or (to > number and to in loop) for to in blocks[number].following):
            loop.add(number)
    heap = [(0, head, (0,) * len(wanted))]
    seen = set()
    while heap:
        length, number, before = heapq.heappop(heap)
        if best is not None and length >= best:
            return best
        if number == head and length > 0:
            return length
        gain = gains[number]
        if gain is None or (number, before) in seen:
            continue
        seen.add((number, before))
        passed = tuple(min(a + b, most) for a, b, most in zip(before, gain, wanted, strict=True))
        for to in blocks[number].following:
            if (to > number and to in loop) or (to == head and passed == wanted):
                heapq.heappush(heap, (length + len(blocks[number].instructions), to, passed))
    return best


def summary(counts: Iterable[Count]) -> str:
    """A line for each way, a column for each kernel."""
    columns: dict[str, list[Count]] = {}
    for count in counts:
        columns.setdefault(f"{count.features}, {count.lanes} lanes", []).append(count)
    rows = [
        [same[0].way, *(f"{count.instructions:.1f}" for count in same)]
        for same in zip(*columns.values(), strict=True)
    ]
    return table(["instructions an element", *columns], rows)


def main() -> None:
    """Print the table, and write it where asked."""
    arguments = parse_arguments("cuda_instructions", __doc__)
    counts, tiny = counts_of(arguments.extension), tiny_counts_of(arguments.extension)
    text = f"{summary(counts)}\n\nTiny classes, with everything:\n{summary(tiny)}"
    conclude([*counts, *tiny], text, [], arguments.json)


if __name__ == "__main__":
    main()
