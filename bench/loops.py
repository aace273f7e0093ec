"""Time of a DM step and of its parts: our loop, the plain loop, and convolutions alone.

python -m bench.loops --quick
python -m bench.loops --name loops

Both loops compute the same from the same draws; `plain_dm.py` is structured as the published one.
Whole steps, then part after part, are raced in one process: a fresh one for each ipc and each
setting of glibc's allocator, which holds for both loops:

    default   large blocks go back to the system when freed, and come as new pages, to be zeroed
    kept      freed memory stays with the process

"convolutions" are those of our float32 step and nothing else, forward and, where a part goes back
to images, for the derivative of the input: what a float32 part cannot be faster than.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from bench.harness import Contender, Timing, race
from bench.loop_parts import (
    PARTS,
    REAL,
    STEP,
    Run,
    Setup,
    Sizes,
    convolution_parts,
    our_parts,
    plain_parts,
)
from bench.records import (
    Record,
    Row,
    add_output_arguments,
    busy_warning,
    machine,
    machine_line,
    seconds_text,
    spread_text,
    table,
)

PLAIN, CONVOLUTIONS = "plain", "convolutions"
VARIANTS: dict[str, dict[str, Any]] = {  # of our loop, by the options of DM that make them
    "ours": {},
    "ours, bf16": {"real_dtype": "bfloat16"},
    "ours, compiled": {"compile": True},
    "ours, bf16 compiled": {"real_dtype": "bfloat16", "compile": True},
}
ARGUMENTS = {
    "exact": "ours",
    "bf16": "ours, bf16",
    "compile": "ours, compiled",
    "bf16-compile": "ours, bf16 compiled",
}

# No block by mmap, which would be unmapped when freed; the heap's end is never given back.
MEMORY = {
    "default": {},
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
}

# What was set out to be reached: times as fast as the plain loop, by allocator, variant and ipc.
GOALS = {
    ("default", "ours", 1): 1.9,
    ("default", "ours", 10): 1.4,
    ("default", "ours", 50): 1.35,
    ("kept", "ours, compiled", 1): 1.25,
    ("kept", "ours, compiled", 10): 1.25,
    ("default", "ours, bf16", 1): 2.2,
    ("default", "ours, bf16", 10): 1.5,
}

QUICK = Sizes(3, 4, 16, "convnet:depth=2,width=8", "resnet18:width=4")


@dataclass(frozen=True)
class Case:
    """What one process measures."""

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
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(case.sizes, case.ipc, torch.device(case.device), Path(folder))
        loops = {PLAIN: plain_parts(setup)}
        for name in case.variants:
            loops[name] = our_parts(setup, **VARIANTS[name])
        errors = _errors(loops)
        loops[CONVOLUTIONS] = convolution_parts(setup)
        rows = []
        for part in PARTS:
            # Variants of our loop differ in the real branch alone: the first stands for all.
            same = () if part in (STEP, REAL) else case.variants[1:]
            runs = {
                name: parts[part]
                for name, parts in loops.items()
                if part in parts and name not in same
            }
            contenders = {
                name: Contender(run, itertools.count().__next__) for name, run in runs.items()
            }
            times = race(contenders, budget=case.budget, device=case.device, rounds=case.rounds)
            for name, run in runs.items():
                row: Row = {"ipc": case.ipc, "memory": case.memory, "part": part, "loop": name}
                row |= _figures(name, times)
                if part == STEP:
                    row |= errors.get(name, {})
                    if setup.device.type == "cpu":
                        row["page_faults"] = _page_faults(run)
                rows.append(row)
    return rows


def _errors(loops: dict[str, dict[str, Run]]) -> dict[str, Row]:
    """How far the loss and gradient of our loops are from the plain one's, relative."""
    results = {name: cast("tuple[Tensor, Tensor]", parts[STEP](0)) for name, parts in loops.items()}
    expected = results.pop(PLAIN)
    return {
        name: {
            f"{what}_error": _short(float((ours - theirs).norm() / theirs.norm()))
            for what, ours, theirs in zip(("loss", "gradient"), found, expected, strict=True)
        }
        for name, found in results.items()
    }


def _figures(name: str, times: dict[str, Timing]) -> Row:
    """Its time, and how that compares with the others of the race."""
    time = times[name]
    row: Row = {"seconds": _short(time.median), "p20": _short(time.low), "p80": _short(time.high)}
    row |= {"samples": time.samples, "others": time.others}
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


def measure_apart(case: Case) -> list[Row]:
    """`measure` in a process of its own, which glibc makes with the allocator of the case."""
    inherited = dict(os.environ)
    for name in inherited:
        if name.startswith("MALLOC_"):
            del os.environ[name]
    os.environ.update(MEMORY[case.memory])
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measure, case).result()
    finally:
        os.environ.clear()
        os.environ.update(inherited)


def report(record: Record) -> str:
    """Render the record as Markdown."""
    parts = [f"`{machine_line(record.machine)}`", *busy_warning(record)]
    for memory, ipc in dict.fromkeys((row["memory"], row["ipc"]) for row in record.rows):
        rows = [row for row in record.rows if (row["memory"], row["ipc"]) == (memory, ipc)]
        parts += [f"### ipc {ipc}, memory: {memory}", times_table(rows)]
        parts += ["\n".join(f"- {line}" for line in summary(rows))]
    return "\n\n".join(parts)


def times_table(rows: list[Row]) -> str:
    """Every part and loop of one ipc and allocator."""
    header = "part|loop|median|20 .. 80 %|x plain|/ convolutions|page faults"
    lines = [
        (
            row["part"],
            row["loop"],
            seconds_text(row["seconds"]),
            spread_text(row),
            f"{row['speedup_over_plain']:.2f}",
            f"{row['over_convolutions']:.2f}" if "over_convolutions" in row else "-",
            row.get("page_faults", "-"),
        )
        for row in rows
    ]
    return table(header.split("|"), lines)


def summary(rows: list[Row]) -> list[str]:
    """Each of our loops against the plain one: time, its goal if there is one, and numbers."""
    lines = []
    for row in rows:
        if row["part"] != STEP or row["loop"] not in VARIANTS:
            continue
        goal = GOALS.get((row["memory"], row["loop"], row["ipc"]))
        lines.append(
            f"{row['loop']}: {row['speedup_over_plain']:.2f} times as fast as the plain loop"
            + (f" (goal {goal:g})" if goal else "")
            + f"; its loss is off by {row['loss_error']:.1e}, "
            f"the gradient by {row['gradient_error']:.1e}"
        )
    return lines


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.loops",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Keep the machine idle meanwhile: the goals are ratios of seconds.",
    )
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    add("--ipc", type=int, nargs="+", default=[1, 10, 50], help="images per class (%(default)s)")
    add("--memory", choices=MEMORY, default=list(MEMORY), **several,
        help="glibc's allocator, of default and kept (%(default)s); a GPU has its own")  # fmt: skip
    add("--variants", choices=ARGUMENTS, default=list(ARGUMENTS), **several,
        help="of our loop, of exact, bf16 and compile (%(default)s)")  # fmt: skip
    add("--budget", type=float, default=20.0, help="seconds for each part (%(default)s)")
    add("--device", default="cpu", help="where the loops run: cpu or cuda (%(default)s)")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    add("--quick", action="store_true", help="a look: tiny networks, ipc 2, nothing compiled")
    add_output_arguments(parser, "loops")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = parse()
    torch.set_num_threads(args.threads)
    sizes, rounds = Sizes(), (5, 2000)
    if args.quick:
        sizes, rounds, args.ipc, args.variants = QUICK, (2, 5), [2], ["exact", "bf16"]
    if torch.device(args.device).type == "cuda":
        args.memory = ["default"]
    variants = tuple(ARGUMENTS[name] for name in args.variants)
    settings = {"sizes": vars(sizes), "budget": args.budget, "device": args.device}
    record = Record("loops", machine(args.device, args.date), settings, [])
    cases = tqdm(list(itertools.product(args.memory, args.ipc)), unit="process")
    for memory, ipc in cases:
        cases.set_postfix_str(f"ipc {ipc}, memory {memory}")
        record.rows += measure_apart(
            Case(sizes, ipc, memory, variants, args.device, args.threads, args.budget, rounds)
        )
    path = record.write(args.name, args.out, args.json_only)
    print(report(record))
    print("\nwritten:", path)


if __name__ == "__main__":
    main()
