"""What a call of the CUDA kernels should take: from bytes, instructions, exps, latency, launches.

python -m bench.gpu.model
python -m bench.gpu.model --copy 4.3e12 --shapes 1000x50x512 10x10x512

A kernel takes as long as the slower of memory and arithmetic, and of the other what nothing hides:
a block's first class has to arrive before there is work, its last is worked on when all has. It
does not end before its blocks' own chains of dependent steps do. The benchmark shows this beside
what it measured on the same GPU, with the copy and the launches measured there, so that a miss is
seen.

Bytes and instructions were counted, the latter in the machine code for sm_90 (`bench/NOTES.md`).
The latencies are guesses until they have been measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.harness.shapes import SETS, Shape, shapes_of
from bench.harness.tables import seconds_text, table
from cmikernels.native import native

MODES = ("value", "value+gradient")  # that are predicted

# A multiprocessor in a cycle.
INSTRUCTIONS_A_CYCLE = 128  # of threads
EXPS_A_CYCLE = 16
BYTES_A_CYCLE = 64  # between it and L2
RESIDENT_THREADS = 512  # that its registers serve

# Instructions an element: sums of P, then value and gradient, or the value alone.
SUM_COST, FINISH_COST, VALUE_COST = 9.7, 16.6, 11.8
ACCURATE_COST = 13.2  # more where KL is below ACCURATE_BELOW
UNPACK_COST = 1.3  # more in each of the two sweeps for half precision
# A column of a class, in every block that has some of its rows (kColumnCost, kRemoteCost and
# kSumBytes of csrc/cuda/plan.cpp); of a slot in each of its two kernels.
COLUMN_COST, REMOTE_COST = 70.0, 20.0
SLOT_COLUMN_BYTES = 24
WIDE_SWEEPS = 2  # how often wide rows are swept where others are once

ACCURATE_BELOW = 0.25
STEP = 1e-6  # seconds of a class's dependent steps in a block: sums, centroid, value, barriers
CLUSTER_STEP = 0.5e-6  # more for its two barriers in a cluster
READ = 0.7e-6  # from asking memory to having
CACHED = 0.5  # of L2, that the last rows read are still in when slots are read again


@dataclass(frozen=True)
class Machine:
    """A GPU, as far as time depends on it."""

    chip: dict[str, int]  # as native.cuda_plan takes it
    clock: float  # Hz
    copy_rate: float  # bytes a second, read and written
    cache_rate: float  # bytes a second that L2 gives
    launch: float  # seconds from one empty kernel's end to the next one's, replayed

    @property
    def processors(self) -> int:
        """Multiprocessors."""
        return self.chip["processors"]


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
class Kernel:
    """Seconds that a kernel would take if there were nothing but each of these."""

    memory: float = 0.0  # to move the bytes
    issue: float = 0.0  # to issue the instructions, on the busiest multiprocessor
    exps: float = 0.0  # likewise
    latency: float = 0.0  # of one block's work, one thing after the other
    turns: int = 1  # pieces of work that a block takes one after the other

    @property
    def seconds(self) -> float:
        """Of the kernel, beyond its launch."""
        arithmetic = max(self.issue, self.exps)
        slower, faster = max(self.memory, arithmetic), min(self.memory, arithmetic)
        return max(self.latency, slower + faster / self.turns)


@dataclass(frozen=True)
class Prediction:
    """Seconds of a call, and what they come from."""

    plan: dict[str, Any]
    kernels: tuple[Kernel, ...]  # that have work to do
    launches: int  # of ours
    launching: float  # seconds, of torch's launch as well
    seconds: float

    @property
    def limit(self) -> str:
        """What takes the largest part of the time."""
        parts = {"launches": self.launching}
        for kernel in self.kernels:
            alone = {
                "memory": kernel.memory,
                "issue": kernel.issue,
                "exps": kernel.exps,
                "latency": kernel.latency,
            }
            busiest = max(alone, key=lambda name: alone[name])
            parts[busiest] = parts.get(busiest, 0.0) + kernel.seconds
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True)
class _Call:
    """A call on equal classes, with its plan and what it costs."""

    shape: Shape
    size: int  # bytes of an element
    with_gradient: bool
    accurate: bool
    machine: Machine
    plan: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Of the features."""
        return self.shape.elements * self.size

    @property
    def teams(self) -> int:
        """Rows that a block works on at once."""
        return int(self.plan["threads"] // self.plan["lanes"])

    @property
    def width(self) -> int:
        """Columns that a team works on, with those beyond the row."""
        if self.plan["kind"] == "wide":
            return self.shape.channels
        packs = (8 if self.size == 4 else 4) // (2 if self.plan["form"] == "any" else 1)
        return int(self.plan["lanes"] * packs * 16 // self.size)

    @property
    def sum_cost(self) -> float:
        """Instructions an element of the first sweep."""
        return SUM_COST + (UNPACK_COST if self.size == 2 else 0.0)

    @property
    def finish_cost(self) -> float:
        """Instructions an element of the second sweep."""
        cost = FINISH_COST if self.with_gradient else VALUE_COST
        cost += ACCURATE_COST if self.accurate else 0.0
        return cost + (UNPACK_COST if self.size == 2 else 0.0)

    def issued(self, instructions: float) -> float:
        """Seconds of a multiprocessor."""
        return instructions / (INSTRUCTIONS_A_CYCLE * self.machine.clock)

    def evaluated(self, exps: float) -> float:
        """Seconds of a multiprocessor."""
        return exps / (EXPS_A_CYCLE * self.machine.clock)

    def moved(self, count: float) -> float:
        """Seconds for bytes to or from a multiprocessor."""
        return count / (BYTES_A_CYCLE * self.machine.clock)


def predict(
    shape: Shape, dtype: torch.dtype, mode: str, machine: Machine, accurate: bool = False
) -> Prediction:
    """Predict a call on equal classes with the reduction "mean" (or "sum").

    Args:
        shape: of the features, which are contiguous.
        dtype: of 4 or 2 bytes; float64 was not counted.
        mode: "value", or "value+gradient" by way of autograd.
        machine: where.
        accurate: KL is below `ACCURATE_BELOW`, where the value takes the longer form.

    """
    if mode not in MODES or dtype.itemsize > 4:
        raise ValueError(f"no prediction for {mode} of {dtype}")
    with_gradient = mode == "value+gradient"
    plan = plan_of(shape, dtype, machine.chip)
    call = _Call(shape, dtype.itemsize, with_gradient, accurate, machine, plan)
    work = [_class_kernel(call)] if plan["kind"] == "classes" else list(_slot_kernels(call))
    # The total of the blocks' values comes last: a step, and one number a block.
    kernels = (*work, Kernel(latency=STEP))
    # The backward launches all but the total, and they return at once: it is asked for times 1.
    launches = len(kernels) + (len(work) if with_gradient else 0)
    # To make that 1 is a launch of torch's own.
    launching = (launches + with_gradient) * machine.launch
    seconds = launching + sum(kernel.seconds for kernel in kernels)
    return Prediction(plan, kernels, launches, launching, seconds)


def plan_of(shape: Shape, dtype: torch.dtype, chip: dict[str, int]) -> dict[str, Any]:
    """How the kernels compute on contiguous features of equal classes."""
    plan: dict[str, Any] = native.cuda_plan(
        rows=shape.classes * shape.rows,
        classes=shape.classes,
        largest=shape.rows,
        channels=shape.channels,
        element_bytes=dtype.itemsize,
        ragged=False,
        aligned=shape.channels * dtype.itemsize % 16 == 0,
        given=False,
        weighted=False,
        **chip,
    )
    return plan


def _class_kernel(call: _Call) -> Kernel:
    plan, shape, machine = call.plan, call.shape, call.machine
    cluster, held = plan["cluster"], plan["stages"] > 0
    clusters = plan["blocks"] // cluster
    turns = -(-shape.classes // clusters)
    hosted = -(-plan["blocks"] // machine.processors)  # blocks, by the busiest multiprocessor
    rounds = -(-plan["share_rows"] // call.teams)
    entries = rounds * call.teams * call.width
    per_column = COLUMN_COST + (REMOTE_COST if cluster > 1 else 0.0)
    instructions = entries * (call.sum_cost + call.finish_cost) + shape.channels * per_column

    # What is not held is read again, from L2 while the classes at work fit it.
    again = 0 if held else call.bytes
    at_work = min(call.bytes, clusters * shape.rows * shape.channels * call.size)
    cached = at_work * 4 <= machine.chip["cache_bytes"] * 3
    moved = call.bytes * (1 + call.with_gradient)
    memory = (moved + (0 if cached else again)) / machine.copy_rate
    memory += again / machine.cache_rate if cached else 0.0
    share = plan["share_rows"] * shape.channels * call.size
    through = share * (1 + call.with_gradient + (not held))

    # Where there is one stage, a class is only asked for when the one before is done.
    arrival = READ + call.moved(share) if plan["stages"] == 1 else 0.0
    arrival += 0.0 if held else 2 * rounds * READ
    step = STEP + (CLUSTER_STEP if cluster > 1 else 0.0)
    return Kernel(
        memory=max(memory, hosted * turns * call.moved(through)),
        issue=hosted * turns * call.issued(instructions),
        exps=hosted * turns * call.evaluated(2 * entries),
        latency=turns * (step + arrival + call.issued(instructions)),
        turns=turns,
    )


def _slot_kernels(call: _Call) -> Iterator[Kernel]:
    """Sums of slots, means of classes, rows of slots. Slots start as others end."""
    plan, shape, machine = call.plan, call.shape, call.machine
    wide = plan["kind"] == "wide"
    sweeps = WIDE_SWEEPS if wide else 1
    hosted = -(-plan["slots"] // machine.processors)
    turns = -(-plan["slots"] * plan["threads"] // (machine.processors * RESIDENT_THREADS))
    rows = min(plan["rows_per_slot"], shape.rows)
    rounds = -(-rows // call.teams)
    entries = rounds * call.teams * call.width * sweeps
    chain = rounds * READ * sweeps
    reread = (sweeps - 1) * call.bytes / machine.cache_rate
    sums = plan["slots"] * shape.channels * SLOT_COLUMN_BYTES / 2

    def kernel(cost: float, memory: float) -> Kernel:
        instructions = entries * cost + shape.channels * COLUMN_COST
        return Kernel(
            memory=memory + reread + sums / machine.copy_rate,
            issue=hosted * call.issued(instructions),
            exps=hosted * call.evaluated(entries),
            latency=turns * (STEP + chain + call.issued(instructions)),
            turns=turns,
        )

    yield kernel(call.sum_cost, call.bytes / machine.copy_rate)
    yield Kernel(latency=STEP)
    cached = min(call.bytes, machine.chip["cache_bytes"] * CACHED)
    moved = call.bytes * (1 + call.with_gradient) - cached
    yield kernel(call.finish_cost, moved / machine.copy_rate + cached / machine.cache_rate)


def machine_here(copy_rate: float, launch: float, device: int = 0) -> Machine:
    """Describe the GPU at hand, with what was measured on it; the clock is its fastest."""
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
                        f"{'below' if accurate else 'above'} {ACCURATE_BELOW:g}",
                        plan["kind"],
                        f"{plan['cluster']} x {plan['threads']}",
                        plan["stages"],
                        plan["blocks"],
                        plan["rows_per_slot"] or plan["share_rows"],
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
        prog="python -m bench.gpu.model",
        description="Predict times of the CUDA kernels on an H200.",
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
