"""Instructions an element in the loops of the Triton kernels, compiled for a named GPU.

python -m tests.gpu.triton_instructions
python -m tests.gpu.triton_instructions --target 100 --json out/instructions.json

Needs no GPU, like tests.gpu.triton_resources. Rows have 512 channels, and what a row takes as a
whole, such as its shuffles, is shared among its elements. Of each loop the lean form comes first,
and the careful form, which hardly ever runs, second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from bench.harness.tables import table
from tests.gpu.machine_code import loops
from tests.gpu.triton_resources import Case, compiled_launches

CASES = (
    Case(20_000, 10, 512),
    Case(20_000, 10, 512, torch.bfloat16),
    Case(20_000, 10, 512, torch.bfloat16, mode="rescale"),
    Case(10, 3000, 512),
)
# A coefficient of the series, by which its part of a loop is known.
SERIES = "0.4999999701976776123"


class Count(NamedTuple):
    """What a loop takes."""

    kernel: str
    case: str
    loop: int  # of the kernel's, in the order of its code
    direct: float  # instructions an element
    series: float | None  # the same where the value is by the series


def count(target: int) -> list[Count]:
    """Count in the machine code of each case's kernels."""
    counts = []
    for case, name, compiled in compiled_launches(target, CASES):
        for number, loop in enumerate(loops(disassembled(compiled.asm["cubin"]))):
            series = loop.an_element(SERIES) if loop.has(SERIES) else None
            counts.append(Count(name, str(case), number, loop.an_element(), series))
    return counts


def disassembled(cubin: bytes) -> str:
    """What nvdisasm, which Triton brings along, prints of it."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu.triton_instructions", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--target", type=int, default=90, help="compute capability (%(default)s)")
    parser.add_argument("--json", type=Path, help="write every count there")
    arguments = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    counts = count(arguments.target)
    if arguments.json:
        arguments.json.write_text(json.dumps([each._asdict() for each in counts], indent=1))
    rows = [
        [*map(str, each[:3]), f"{each.direct:.1f}", f"{each.series:.1f}" if each.series else "-"]
        for each in counts
    ]
    print(table(["kernel", "call", "loop", "direct form", "series"], rows))


if __name__ == "__main__":
    main()
