"""What a call of the CUDA kernels should take at least: a roofline by bytes and issue slots.

    seconds = launches + max(bytes / rate of a copy, instructions / issue slots)

The benchmark prints this beside what it measured on the same GPU, with the copy and the launches
measured there; `bench.gpu.predictions` prints it for an H200 that is described. Instructions were
counted in the machine code for sm_90 (`tests.gpu.cuda_instructions`). How the kernels go about a
call, and so how often they read, is their own plan. Work on columns and the waits of a cluster are
not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu.chips import Chip, chip_here
from bench.harness.records import Row
from bench.harness.shapes import Shape
from cmikernels.native import native

INSTRUCTIONS_A_CYCLE = 128  # of threads, by a multiprocessor
# By the bytes of an entry, for teams of 16 lanes: in the sweep for the sums, and in the one for the
# value alone, or for the gradient with it, where KL is above 0.25 (the direct form).
SUM_COST = {4: 6.6, 2: 6.8}
VALUE_COST = {4: 6.8, 2: 7.7}
FINISH_COST = {4: 9.5, 2: 10.8}
# More, by the form of the value: the floor of its rows' KL, and instructions.
FORMS = {
    "direct": (0.25, 0.0),
    "balanced": (0.0625, 3.1),
    "long series": (0.006, 10.7),
    "short series": (0.0, 8.7),
}
# With everything, where a warp holds a class: of an entry that it has room for.
TINY_COST = {4: 19.2, 2: 20.0}
TINY_VALUE_COST = {4: 16.4, 2: 16.8}
TINY_ENTRIES = 1024
# Reads of the features, unless they are kept on the chip.
READS = {"tiny": 1, "classes": 2, "slots": 2, "wide": 4}
# The kernel, after its counters have been cleared.
LAUNCHES = {"tiny": 1, "classes": 1, "slots": 2, "wide": 2}


@dataclass(frozen=True)
class Machine:
    """A GPU, as far as time depends on it."""

    chip: Chip
    clock: float  # Hz
    copy_rate: float  # bytes a second, read and written
    launch: float  # seconds from one empty kernel's end to the next one's, replayed


@dataclass(frozen=True)
class Prediction:
    """Seconds of a call, and what they come from."""

    plan: dict[str, Any]
    launches: int  # of ours, in a CUDA graph
    launching: float  # seconds, of torch's launch as well
    memory: float
    issue: float

    @property
    def seconds(self) -> float:
        """Of the whole call."""
        return self.launching + max(self.memory, self.issue)

    @property
    def limit(self) -> str:
        """What takes the most."""
        parts = {"launches": self.launching, "memory": self.memory, "issue": self.issue}
        return max(parts, key=lambda name: parts[name])


def predict(
    shape: Shape, dtype: torch.dtype, mode: str, machine: Machine, form: str = "direct"
) -> Prediction:
    """Predict a call on contiguous features of equal classes, with the reduction "mean".

    The mode is "value", or "value+gradient" by way of autograd; the form is that of the value.
    """
    if dtype.itemsize > 4:
        raise ValueError(f"no prediction for {dtype}: its instructions were not counted")
    with_gradient = mode == "value+gradient"
    plan = plan_of(shape, dtype, machine.chip)
    passes = reads_of(plan) + with_gradient
    if plan["kind"] == "tiny":
        whole = TINY_COST if with_gradient else TINY_VALUE_COST
        cost = whole[dtype.itemsize] + FORMS[form][1]
        cost *= TINY_ENTRIES / (shape.rows * shape.channels)
    else:
        finish = FINISH_COST if with_gradient else VALUE_COST
        cost = SUM_COST[dtype.itemsize] + finish[dtype.itemsize] + FORMS[form][1]
    # The backward's return at once: it is asked for times 1. To make that 1 is a launch of torch's
    # own. In a graph the counter of the value's blocks is set to 0 by another.
    launches = LAUNCHES[plan["kind"]] * (1 + with_gradient) + 1
    rate = INSTRUCTIONS_A_CYCLE * machine.clock * working(plan, shape, machine.chip)
    return Prediction(
        plan,
        launches,
        (launches + with_gradient) * machine.launch,
        passes * shape.elements * dtype.itemsize / machine.copy_rate,
        shape.elements * cost / rate,
    )


def form_of(shape: Shape, spread: float) -> str:
    """Of the value of normal features of that spread, whose KL grows with its square."""
    kl = 0.45 * spread**2 * (1 - 1 / shape.rows)
    return next(form for form, (floor, _) in FORMS.items() if kl >= floor)


def reads_of(plan: dict[str, Any]) -> int:
    """How often features come from memory."""
    held = plan["kind"] == "classes" and plan["stages"] > 0
    in_cache = plan["kind"] == "slots" and plan["read_once"]
    return 1 if held or in_cache else READS[plan["kind"]]


def working(plan: dict[str, Any], shape: Shape, chip: Chip) -> float:
    """Multiprocessors at work, on average until the last one is done."""
    if plan["kind"] in ("slots", "wide"):
        return float(min(chip.processors, plan["slots"]))
    # All clusters are resident, and each has its classes from the start.
    clusters: int = plan["blocks"] // plan["cluster"]
    turns = math.ceil(shape.classes / clusters)
    blocks_together = math.ceil(plan["blocks"] / chip.processors)
    return float(shape.classes * plan["cluster"] / (turns * blocks_together))


def plan_of(
    shape: Shape, dtype: torch.dtype, chip: Chip, *, ragged: bool = False
) -> dict[str, Any]:
    """How the kernels compute on contiguous features of equal classes.

    With `ragged` they are not told that classes are equal, as with a ClassIndex.
    """
    plan: dict[str, Any] = native.cuda_plan(
        rows=shape.classes * shape.rows,
        classes=shape.classes,
        largest=shape.rows,
        channels=shape.channels,
        element_bytes=dtype.itemsize,
        ragged=ragged,
        aligned=shape.channels * dtype.itemsize % 16 == 0,
        given=False,
        weighted=False,
        chip=chip._asdict(),
    )
    return plan


def plan_row(plan: dict[str, Any], chip: Chip) -> Row:
    """What a record keeps of a plan: its clusters beside those that the GPU holds at once."""
    row = {f"plan_{key}": plan[key] for key in ("kind", "cluster", "threads", "stages")}
    if plan["kind"] in ("classes", "tiny"):
        row["plan_clusters"] = plan["blocks"] // plan["cluster"]
        row["plan_resident"] = chip.resident(plan["cluster"], plan["threads"])
    return row


def machine_here(copy_rate: float, launch: float, device: int = 0) -> Machine:
    """Describe the GPU at hand, with what was measured on it; the clock is its fastest."""
    properties = torch.cuda.get_device_properties(device)
    clock = getattr(properties, "clock_rate", 1.7e6) * 1e3
    return Machine(chip_here(device), clock, copy_rate, launch)
