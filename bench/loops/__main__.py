"""Time of a method's iterations and of their parts: our loop, the plain loop, convolutions alone.

python -m bench.loops --quick
python -m bench.loops --method dc

Both loops compute the same from the same draws; `plain_dm.py` and its like are structured as the
published ones. The whole, then part after part, is raced in one process: a fresh one for each ipc
and each setting of glibc's allocator, which holds for both loops:

    default   large blocks go back to the system when freed, and come as new pages, to be zeroed
    kept      freed memory stays with the process

"convolutions" are those of our float32 loop and nothing else, forward and for the derivatives by
inputs and weights that a part takes: what a float32 part cannot be faster than.

An outer iteration of DC is not raced but added up from the medians of its parts, as often as it is
published to run them. Peak memory of MTT is that of an iteration in a process of its own, in which
glibc gives every large block back as soon as it is freed, and what of it was not there before.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from bench.harness import memory
from bench.harness.race import Contender, Timing, race
from bench.harness.records import (
    Record,
    Row,
    add_output_arguments,
    add_resume_argument,
    machine,
    saved_rows,
)
from bench.loops import dc_parts, dm_parts, mtt_parts
from bench.loops.report import OUTER, PEAK, WHOLE, report
from bench.loops.setup import CONVOLUTIONS, OURS, PLAIN, Loops, Result, Run, Setup, Sizes
from cmidd.cli.options import usable_device
from cmidd.methods.dc import DCOptions, DSAOptions

VARIANTS: dict[str, dict[str, Any]] = {  # of our loop, by the options of DM that make them
    OURS: {},
    "ours, bf16": {"real_dtype": "bfloat16"},
    "ours, compiled": {"compile": True},
    "ours, bf16 compiled": {"real_dtype": "bfloat16", "compile": True},
}
ARGUMENTS = {
    "exact": OURS,
    "bf16": "ours, bf16",
    "compile": "ours, compiled",
    "bf16-compile": "ours, bf16 compiled",
}


@dataclass(frozen=True)
class Measured:
    """What there is of a method.

    Args:
        loops: of a setup and the options of our loop's variants.
        outer: ipc to how often an outer iteration runs each part, where it is made of several.
        variants: of our loop, by the arguments that name them.
        has_peaks: whether memory is measured.
    """

    loops: Callable[[Setup, Mapping[str, dict[str, Any]]], Loops]
    outer: Callable[[int], dict[str, int]] | None = None
    variants: tuple[str, ...] = ("exact",)
    has_peaks: bool = False


METHODS = {
    "dm": Measured(dm_parts.loops, variants=tuple(ARGUMENTS)),
    "dc": Measured(
        lambda setup, variants: dc_parts.loops(setup, DCOptions, variants),
        dc_parts.per_iteration,
        ("exact", "compile"),
    ),
    "dsa": Measured(
        lambda setup, variants: dc_parts.loops(setup, DSAOptions, variants),
        dc_parts.per_iteration,
        ("exact", "compile"),
    ),
    "mtt": Measured(lambda setup, _: mtt_parts.loops(setup), has_peaks=True),
}

# No block by mmap, which would be unmapped when freed; the heap's end is never given back.
MEMORY = {
    "default": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}

# The allocator under which memory is measured, rather than time: no block stays when it is freed.
RETURNED = {"returned": {"MALLOC_MMAP_THRESHOLD_": "65536"}}

QUICK = Sizes(3, 4, 16, "convnet:depth=2,width=8", "resnet18:width=4", 2, (1, 2))


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    method: str
    sizes: Sizes
    ipc: int
    memory: str
    variants: tuple[str, ...]
    device: str
    threads: int
    budget: float  # seconds a part
    rounds: tuple[int, int]


def measure(case: Case) -> list[Row]:
    """A row for each part and loop."""
    measured, whole = METHODS[case.method], WHOLE[case.method]
    rows: list[Row] = []
    with prepared(case) as setup:
        loops = measured.loops(setup, {name: VARIANTS[name] for name in case.variants})
        errors = _errors(loops, whole)
        for part in dict.fromkeys(part for parts in loops.values() for part in parts):
            runs = {name: parts[part] for name, parts in loops.items() if part in parts}
            contenders = {
                name: Contender(run, itertools.count().__next__) for name, run in runs.items()
            }
            times = race(contenders, budget=case.budget, device=case.device, rounds=case.rounds)
            for name, run in runs.items():
                row: Row = {"ipc": case.ipc, "memory": case.memory, "part": part, "loop": name}
                row |= _figures(name, times)
                if part == whole:
                    row |= errors.get(name, {})
                    if setup.device.type == "cpu":
                        row["page_faults"] = _page_faults(run)
                rows.append(row)
    return rows + (outer_iterations(rows, measured.outer(case.ipc)) if measured.outer else [])


def measure_peak(case: Case, loop: str, steps: int) -> list[Row]:
    """A row with the memory of an iteration of so many student steps."""
    with prepared(case) as setup:
        peak = mtt_parts.peak_bytes(setup, loop, steps)
    row = {"ipc": case.ipc, "memory": case.memory, "part": PEAK, "loop": loop, "steps": steps}
    whole = None if peak is None else memory.peak_so_far(setup.device)
    return [{**row, "peak_bytes": peak, "whole_bytes": whole, "others": None}]


@contextmanager
def prepared(case: Case) -> Iterator[Setup]:
    """What a case works on, with a folder while it does."""
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        yield Setup(case.sizes, case.ipc, usable_device(case.device), Path(folder))


def _errors(loops: Loops, whole: str) -> dict[str, Row]:
    """How far the loss and gradient of our loops are from the plain one's, relative."""
    results = {
        name: cast(Result, parts[whole](0))
        for name, parts in loops.items()
        if PLAIN in loops and name != CONVOLUTIONS
    }
    expected = results.pop(PLAIN, ())
    return {
        name: {
            f"{what}_error": _short(float((ours - theirs).norm() / theirs.norm()))
            for what, ours, theirs in zip(("loss", "gradient"), found, expected, strict=True)
        }
        for name, found in results.items()
    }


def outer_iterations(rows: list[Row], times: dict[str, int]) -> list[Row]:
    """Rows of what is not raced: a whole iteration, with so many runs of each part."""
    seconds: dict[str, float] = {}
    for row in rows:
        if row["loop"] != CONVOLUTIONS:
            runs = times.get(row["part"], 0)
            seconds[row["loop"]] = seconds.get(row["loop"], 0.0) + runs * row["seconds"]
    head = {key: rows[0][key] for key in ("ipc", "memory")}
    return [
        {
            **head,
            "part": OUTER,
            "loop": loop,
            "seconds": _short(total),
            "others": None,
            "speedup_over_plain": _short(seconds[PLAIN] / total),
        }
        for loop, total in seconds.items()
    ]


def _figures(name: str, times: dict[str, Timing]) -> Row:
    """Its time, and how that compares with the others of the race."""
    time = times[name]
    row: Row = {"seconds": _short(time.median), "p20": _short(time.low), "p80": _short(time.high)}
    row |= {"samples": time.samples, "others": time.others}
    if PLAIN in times:
        row["speedup_over_plain"] = _short(times[PLAIN].median / time.median)
    if CONVOLUTIONS in times:
        row["over_convolutions"] = _short(time.median / times[CONVOLUTIONS].median)
    return row


def _page_faults(run: Run) -> int:
    """Pages that the system had to give in one call."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def apart(function: Callable[..., list[Row]], case: Case, *arguments: object) -> list[Row]:
    """Rows by a process of its own, which glibc makes with the allocator of the case."""
    inherited = dict(os.environ)
    for name in inherited:
        if name.startswith("MALLOC_"):
            del os.environ[name]
    os.environ.update((MEMORY | RETURNED)[case.memory])
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(function, case, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(inherited)


def _job_of(row: Row) -> tuple[Any, ...]:
    """What tells the process that a row came from: ipc, allocator, of a peak its loop and steps."""
    more = (row["loop"], row["steps"]) if row["part"] == PEAK else ()
    return row["ipc"], row["memory"], *more


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.loops",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Keep the machine idle meanwhile: the goals are ratios of seconds.",
    )
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    add("--method", choices=METHODS, default="dm", help="which loop (%(default)s)")
    add("--ipc", type=int, nargs="+", default=[1, 10, 50], help="images per class (%(default)s)")
    add("--memory", choices=MEMORY, default=list(MEMORY), **several,
        help="glibc's allocator, of default and kept (%(default)s); a GPU has its own")  # fmt: skip
    add("--variants", choices=ARGUMENTS, default=list(ARGUMENTS), **several,
        help="of our loop: exact, compile but for MTT, bf16 of DM (%(default)s)")  # fmt: skip
    add("--steps", type=int, default=Sizes.student_steps,
        help="of MTT's student, where time is measured (%(default)s)")  # fmt: skip
    add("--budget", type=float, default=20.0, help="seconds for each part (%(default)s)")
    add("--rounds", type=int, default=5,
        help="of a part at least, however long they take (%(default)s)")  # fmt: skip
    add("--device", default="cpu", help="where the loops run: cpu or cuda (%(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    add("--quick", action="store_true", help="a look: tiny networks, ipc 2, nothing compiled")
    add_output_arguments(parser, "loops")
    add_resume_argument(parser, "process")
    args = parser.parse_args()
    if args.name == parser.get_default("name") and args.method != "dm":
        args.name += f"-{args.method}"
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse()
    torch.set_num_threads(args.threads)
    measured = METHODS[args.method]
    sizes, rounds = Sizes(student_steps=args.steps), (args.rounds, 2000)
    if args.quick:
        sizes, rounds, args.ipc, args.variants = QUICK, (2, 5), [2], ["exact", "bf16"]
    if torch.device(args.device).type == "cuda":
        args.memory = ["default"]
    variants = tuple(ARGUMENTS[name] for name in args.variants if name in measured.variants)
    settings = {"method": args.method, "sizes": asdict(sizes)}
    settings |= {"budget": args.budget, "device": args.device}
    settings |= {"rounds": rounds[0], "variants": variants}
    if args.resume:
        settings["key"] = args.resume
    settings["arguments"] = f"--ipc {' '.join(map(str, args.ipc))} --rounds {rounds[0]}"
    record = Record("loops", machine(args.device, args.date), settings, [])
    record.rows = saved_rows(args, record.machine, settings)

    def case(memory: str, ipc: int) -> Case:
        return Case(args.method, sizes, ipc, memory, variants, args.device, args.threads,
                    args.budget, rounds)  # fmt: skip

    jobs: list[tuple[Any, ...]] = [
        (measure, case(*setting)) for setting in itertools.product(args.memory, args.ipc)
    ]
    if measured.has_peaks:
        for setting in itertools.product(RETURNED, args.ipc):
            several = itertools.product(sizes.peaks, (PLAIN, OURS))
            jobs += [(measure_peak, case(*setting), loop, steps) for steps, loop in several]
    saved = {_job_of(row) for row in record.rows}
    for job in (bar := tqdm(jobs, unit="process")):
        function, case_of_job, *rest = job
        bar.set_postfix_str(f"ipc {case_of_job.ipc}, memory {case_of_job.memory}")
        if (case_of_job.ipc, case_of_job.memory, *rest) in saved:
            continue
        record.rows += apart(function, case_of_job, *rest)
        if args.resume:
            record.write(args.name, args.out, args.json_only)
    path = record.write(args.name, args.out, args.json_only)
    print(report(record))
    print("\nwritten:", path)


if __name__ == "__main__":
    main()
