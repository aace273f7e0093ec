"""What a call of the CUDA kernels should take: from bytes, issue slots, exps, waves and launches.

python -m bench.model
python -m bench.model --copy 4.3e12 --shapes 1000x50x512 10x10x512

Time is the larger of what memory and arithmetic ask for, stretched where blocks leave
multiprocessors idle, plus launches. The benchmark prints it beside what it measured on the same
GPU, with the copy and the launches measured there, so that a miss is seen.

Issue slots an element were counted in the machine code for sm_90 (`bench/NOTES.md`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.records import seconds_text, table
from bench.shapes import SETS, Shape, shapes_of
from cmikernels.native import native

WARP_SCHEDULERS, LANES = 4, 32  # of a multiprocessor, of a warp
EXPS_A_CYCLE = 16  # of a multiprocessor
LATENCY = 2e-6  # of a class's chain: from memory, statistics, centroid, row after row
# Instructions an element: sums of P, then value and gradient; of those the accurate form.
SUM_SLOTS, FINISH_SLOTS, ACCURATE_SLOTS = 10.0, 15.5, 16.5
UNPACK_SLOTS = 1.0  # more of each for half precision


@dataclass(frozen=True)
class Machine:
    """A GPU, as far as time depends on it."""

    chip: dict[str, int]  # as native.cuda_plan takes it
    clock: float  # Hz under load
    copy_rate: float  # bytes a second, read and written
    cache_rate: float  # bytes a second that L2 gives
    launch: float  # seconds from one launch's end to the next one's start, replayed


H200 = Machine(
    {
        "capability": 90,
        "processors": 132,
        "largest_cluster": 16,
        "clusters_of_16": 8,
        "block_bytes": 227 << 10,
        "processor_bytes": 228 << 10,
        "cache_bytes": 50 << 20,
    },
    clock=1.7e9,
    copy_rate=4.3e12,
    cache_rate=6e12,
    launch=1.5e-6,
)


@dataclass(frozen=True)
class Prediction:
    """Seconds, and what they come from."""

    plan: dict[str, Any]
    launches: int
    memory: float
    arithmetic: float
    exps: float
    fill: float  # share of the chip at work, on average
    seconds: float

    @property
    def limit(self) -> str:
        """What the call waits for."""
        parts = {"memory": self.memory, "issue": self.arithmetic, "exps": self.exps}
        busiest = max(parts, key=lambda name: parts[name])
        return busiest if parts[busiest] / self.fill > self.seconds / 2 else "latency"


def predict(
    shape: Shape, dtype: torch.dtype, mode: str, machine: Machine, accurate: bool = False
) -> Prediction:
    """Predict a call on equal classes; `accurate`: KL is below 0.25, which takes the longer form.

    `mode` is "value" or "value+gradient".
    """
    size, chip = dtype.itemsize, machine.chip
    plan: dict[str, Any] = native.cuda_plan(
        rows=shape.classes * shape.rows,
        classes=shape.classes,
        largest=shape.rows,
        channels=shape.channels,
        element_bytes=size,
        ragged=False,
        aligned=shape.channels * size % 16 == 0,
        given=False,
        weighted=False,
        **chip,
    )
    with_gradient = mode == "value+gradient"
    elements = shape.elements
    once = plan["kind"] == "classes"
    share = float(plan["stages"] > 0)  # of the rows
    # What is not held is read again, from L2 while the classes at work fit it.
    at_work = min(
        elements * size, plan["blocks"] // plan["cluster"] * shape.rows * shape.channels * size
    )
    cached = once and at_work <= chip["cache_bytes"] * 3 // 4
    again = (1 - share) * elements * size
    through = elements * size * (1 + with_gradient) + (0 if cached else again)
    memory = through / machine.copy_rate + (again / machine.cache_rate if cached else 0)

    unpack = UNPACK_SLOTS if size == 2 else 0.0
    slots = SUM_SLOTS + FINISH_SLOTS + 2 * unpack + (ACCURATE_SLOTS if accurate else 0.0)
    a_second = chip["processors"] * machine.clock
    arithmetic = elements * slots / (a_second * WARP_SCHEDULERS * LANES)
    exps = 2 * elements / (a_second * EXPS_A_CYCLE)

    launches = (2 if with_gradient else 1) + 1 if once else (7 if with_gradient else 4)
    fill = _fill(plan, shape, chip["processors"])
    seconds = launches * machine.launch + LATENCY + max(memory, arithmetic, exps) / fill
    return Prediction(plan, launches, memory, arithmetic, exps, fill, seconds)


def _fill(plan: dict[str, Any], shape: Shape, processors: int) -> float:
    """Share of the multiprocessors at work: too few blocks, or a last wave of few classes."""
    clusters = plan["blocks"] // plan["cluster"]
    classes = shape.classes if plan["kind"] == "classes" else clusters
    waves = -(-classes // clusters)
    # Half the chip's blocks already keep memory busy.
    busy = min(1.0, plan["blocks"] / processors)
    return busy * classes / (waves * clusters)


def machine_here(copy_rate: float, launch: float, device: int = 0) -> Machine:
    """The GPU at hand, with what was measured on it."""
    properties = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "clock_rate", H200.clock / 1e3) * 1e3
    return replace(
        H200, chip=native.cuda_chip(device), clock=clock, copy_rate=copy_rate, launch=launch
    )


def report(shapes: list[Shape], machine: Machine) -> str:
    """Plans and times of these shapes, value and gradient, in float32 and bfloat16."""
    lines = []
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for accurate in (False, True):
                found = predict(shape, dtype, "value+gradient", machine, accurate)
                plan = found.plan
                copy = 2 * shape.elements * dtype.itemsize / machine.copy_rate
                lines.append(
                    (
                        str(shape),
                        str(dtype).removeprefix("torch."),
                        "below 0.25" if accurate else "above",
                        plan["kind"],
                        f"{plan['cluster']} x {plan['threads']}",
                        str(plan["stages"]),
                        str(plan["blocks"]),
                        str(plan["share_rows"]),
                        seconds_text(found.seconds),
                        f"{copy / found.seconds:.0%}",
                        found.limit,
                    )
                )
    header = "C x n x M|dtype|KL|kind|cluster x threads|stages|blocks|rows|time|of copy|limit"
    return table(header.split("|"), lines)


def main() -> None:
    """Print predictions for an H200, or for one like it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.model", description="Predict times of the CUDA kernels on an H200."
    )
    add = parser.add_argument
    add("--copy", type=float, default=H200.copy_rate, help="bytes a second of a copy (%(default)g)")
    add("--clock", type=float, default=H200.clock, help="Hz (%(default)g)")
    add(
        "--shapes",
        nargs="+",
        default=["headline", "small", "large"],
        help=f"sets of them ({', '.join(SETS)}) or single ones such as 10x10x512 (%(default)s)",
    )
    args = parser.parse_args()
    print(report(shapes_of(args.shapes), replace(H200, copy_rate=args.copy, clock=args.clock)))


if __name__ == "__main__":
    main()
