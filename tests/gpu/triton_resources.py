"""Registers, spills and shared memory of every Triton kernel variant, compiled for named GPUs.

python -m tests.gpu.triton_resources
python -m tests.gpu.triton_resources --targets 90 --json out/resources.json

Needs no GPU: real calls are made, each launch is caught before it starts and compiled for the
target instead, and NVIDIA's cuobjdump, which Triton brings along, reads the machine code. A spilled
register shows as stack.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.harness.tables import table
from cmikernels import ClassIndex
from cmikernels.backends import operations
from cmikernels.backends import triton as backend
from cmikernels.backends.triton.plan import Chip
from cmikernels.problem import Problem, arithmetic_dtype

TARGETS = (80, 90, 100, 120)  # compute capabilities: Ampere, Hopper, both kinds of Blackwell
# What a block may have on the least of them; a program must run on all.
REGISTERS_OF_BLOCK, SHARED_BYTES_OF_BLOCK = 65536, 99 << 10


class Case(NamedTuple):
    """A call: sizes, dtype, how classes are given, what is asked for."""

    classes: int
    rows: int
    channels: int
    dtype: torch.dtype = torch.float32
    layout: str = "equal"  # "equal", "sorted" or "gathered"
    mode: str = "both"
    given: bool = False

    def __str__(self) -> str:
        """Give the form used in tables."""
        sizes = f"{self.classes}x{self.rows}x{self.channels}"
        parts = [sizes, str(self.dtype).removeprefix("torch."), self.layout, self.mode]
        return " ".join([*parts, "given"] if self.given else parts)


# For each kind of plan a size that goes through every mode, and others with the largest tiles.
EVERY_MODE = ((1000, 4, 64), (1000, 100, 512), (10, 3000, 512), (10, 100, 20_000))
OTHERS = (
    (100_000, 3, 5),
    (1000, 2, 128),
    (100_000, 4, 256),
    (20_000, 10, 512),
    (10, 10, 512),
    (10, 50, 640),
    (2000, 50, 1024),
    (1000, 2, 8192),
    (10, 3000, 2048),
    (10, 100, 8192),
    (10, 100, 8201),
)
MODES = ("value", "both", "rescale", "class", "rescale class", "none", "row weights", "centroids")


def cases() -> Iterator[Case]:
    """Every mode, layout and dtype at some sizes, what takes most registers at every size."""
    for sizes in EVERY_MODE:
        for mode in MODES:
            yield Case(*sizes, mode=mode)
        for layout in ("sorted", "gathered"):
            yield Case(*sizes, layout=layout)
        yield Case(*sizes, given=True)
    for classes, rows, channels in (*EVERY_MODE, *OTHERS):
        yield Case(classes, rows, channels)
        yield Case(classes, rows, channels, layout="gathered", mode="row weights")
        yield Case(classes, rows, channels // 2, torch.float64)
    for sizes in EVERY_MODE:
        yield Case(*sizes, torch.bfloat16)
    yield Case(*EVERY_MODE[0], torch.float16)
    yield Case(*EVERY_MODE[0], torch.float64, "gathered", "row weights")
    yield Case(*EVERY_MODE[1], torch.float64, "gathered", "row weights")


class Variant(NamedTuple):
    """What one compiled kernel takes."""

    target: int
    kernel: str
    case: str  # the first that led to it
    warps: int
    registers: int  # a thread's
    stack_bytes: int  # a thread's
    shared_bytes: int  # a block's


class NoDevice:
    """The driver that Triton asks what to compile for."""

    def __init__(self, target: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", target, 32)

    def get_current_target(self) -> Any:
        """Give the named GPU."""
        return self.target

    def get_current_device(self) -> int:
        """Give the first."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """Give the default one, on which nothing will run."""
        return 0


def compiled_launches(target: int, calls: Iterable[Case]) -> Iterator[tuple[Case, str, Any]]:
    """Each kernel that the calls would launch: the call, the kernel's name, what Triton made."""
    import triton

    triton.runtime.driver.set_active(NoDevice(target))
    from cmikernels.backends.triton import launch

    chip = Chip(processors=132, cache_bytes=50 << 20)
    launch.chip_of = lambda _: chip  # type: ignore[assignment]
    caught: list[tuple[str, Any]] = []

    def compile_instead(
        call: Any, kernel: Any, grid: tuple[int, ...], *, num_warps: int = 0, **arguments: Any
    ) -> None:
        options = launch.build_options(num_warps or call.plan.num_warps)
        compiled = kernel.warmup(grid=grid, **arguments, **options)
        caught.append((kernel.fn.__name__, compiled))

    launch.Call.launch = compile_instead  # type: ignore[assignment,method-assign]
    for case in calls:
        caught.clear()
        _call(case)
        for name, compiled in caught:
            yield case, name, compiled


def compile_all(target: int) -> list[Variant]:
    """Compile what the calls would launch."""
    calls = compiled_launches(target, cases())
    return variants_of(target, ((str(case), name, compiled) for case, name, compiled in calls))


def variants_of(target: int, compiled_calls: Iterable[tuple[str, str, Any]]) -> list[Variant]:
    """What each kernel takes that was compiled: from case, name, what Triton made."""
    import triton

    variants: dict[int, Variant] = {}
    kept: list[Any] = []  # so that no two of them share an id
    for case, name, compiled in compiled_calls:
        if id(compiled) not in variants:
            used = _resources(compiled.asm["cubin"], triton.knobs.nvidia.cuobjdump.path)
            warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
            variants[id(compiled)] = Variant(target, name, case, warps, *used, shared)
            kept.append(compiled)
    return list(variants.values())


def _resources(cubin: bytes, cuobjdump: str) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected resource usage, got {text!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _call(case: Case) -> None:
    """Make the call on tensors whose memory is never read."""
    rows = case.classes * case.rows
    features = torch.empty(rows, case.channels, dtype=case.dtype)
    wide = arithmetic_dtype(case.dtype)
    index = None
    if case.layout != "equal":
        labels = torch.arange(case.classes).repeat_interleave(case.rows)
        index = ClassIndex(labels if case.layout == "sorted" else labels.flip(0))
    centroids = torch.empty(case.classes, case.channels, dtype=wide) if case.given else None
    by_class = case.mode in ("class", "rescale class")
    reduction = "class" if by_class else "none" if case.mode in ("none", "row weights") else "mean"
    problem = Problem(index, rows, case.classes, centroids, 1.0, 1.0, reduction)
    sizes = {"class": (case.classes,), "none": (rows,), "mean": ()}
    incoming = torch.empty(sizes[reduction], dtype=wide)
    if case.mode == "centroids":
        operations.centroids(backend, features, problem)
    elif case.mode == "row weights":
        operations.backward(backend, features, problem, incoming)
    elif case.mode.startswith("rescale"):
        operations.scale(backend, features.clone(), features, problem, incoming)
    else:
        operations.forward(backend, features, problem, case.mode != "value")


def compile_for(
    targets: Iterable[int], compile_all: Callable[[int], list[Variant]]
) -> list[Variant]:
    """Compile for all targets, each in a process of its own."""
    os.environ.pop("TRITON_INTERPRET", None)
    context = multiprocessing.get_context("spawn")
    # A process a target: Triton keeps what it compiled and does not ask the driver again.
    with context.Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        return [variant for each in pool.map(compile_all, targets, 1) for variant in each]


def summary(variants: Iterable[Variant]) -> str:
    """Give the most that any variant of a kernel takes, by target."""
    groups: dict[tuple[int, str], list[Variant]] = {}
    for variant in variants:
        groups.setdefault((variant.target, variant.kernel), []).append(variant)
    rows = []
    for (target, kernel), members in sorted(groups.items()):
        numbers = (
            len(members),
            max(member.registers for member in members),
            max(member.registers * member.warps * 32 for member in members),
            max(member.shared_bytes for member in members),
            max(member.stack_bytes for member in members),
        )
        rows.append([f"sm_{target}", kernel, *map(str, numbers)])
    header = ["target", "kernel", "variants", "registers", "of a block", "shared bytes", "stack"]
    return table(header, rows)


def faults(variants: Iterable[Variant]) -> list[str]:
    """Name what must not be: spills, or more than a block may have."""
    return [
        str(variant)
        for variant in variants
        if variant.stack_bytes > 0
        or variant.registers * variant.warps * 32 > REGISTERS_OF_BLOCK
        or variant.shared_bytes > SHARED_BYTES_OF_BLOCK
    ]


def conclude(
    variants: Iterable[Any], summary: str, faults: list[str], written: Path | None
) -> None:
    """Write the variants (named tuples) where asked, print the table, fail if there are faults."""
    if written:
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps([variant._asdict() for variant in variants], indent=1))
    print(summary)
    if faults:
        sys.exit("\n".join(["spills, or too much for a block:", *faults]))


def main(compile_all: Callable[[int], list[Variant]], module: str, text: str) -> None:
    """Print the table; fail if a variant spills or asks for too much."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=text.split("\n\n")[0])
    parser.add_argument(
        "--targets", type=int, nargs="+", default=TARGETS, help="compute capabilities (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write every variant there")
    arguments = parser.parse_args()
    variants = compile_for(arguments.targets, compile_all)
    conclude(variants, summary(variants), faults(variants), arguments.json)


if __name__ == "__main__":
    main(compile_all, "tests.gpu.triton_resources", __doc__)
