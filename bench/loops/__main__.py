"""Time of a method's steps and of their parts: our loop, the plain loop, convolutions alone.

python -m bench.loops --quick
python -m bench.loops --method dc

Both loops compute the same from the same draws; those in `bench/plain` are structured as the
published ones. They are raced in one process: a fresh one for each ipc and each setting of glibc's
allocator, which holds for both loops:

    default   large blocks go back to the system when freed, and come as new pages, to be zeroed
    kept      freed memory stays with the process, as our loops have it by themselves

"convolutions" are those of our float32 loop and nothing else, forward and for every derivative. The
parts are the ranges that the loops name, as torch.profiler saw them in steps of their own.

Peak memory of MTT is that of an iteration in a process of its own, in which glibc gives every large
block back as soon as it is freed, and what of it was not there before. Keep the machine idle
meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from bench.harness.command import add_rows, benchmark_parser, finish, new_record
from bench.harness.processes import KEPT, RETURNED, apart
from bench.harness.records import Row
from bench.loops.measure import VARIANTS, Case, has_peaks, measure, measure_peak, variants_of
from bench.loops.report import OURS, PEAK, PLAIN, report
from bench.loops.setup import Sizes
from cmidd.methods import METHODS

# A setting that changes nothing has our loops leave malloc as it is.
MEMORY: dict[str, Mapping[str, str]] = {"default": {"MALLOC_PERTURB_": "0"}, "kept": KEPT}
ALLOCATORS = {**MEMORY, "returned": RETURNED}  # under the last one memory is measured, not time

QUICK = Sizes(3, 4, 16, "convnet:depth=2,width=8", "resnet18:width=4", 2, (1, 2))


def _job_of(row: Row) -> tuple[Any, ...]:
    """What tells the process that a row came from: ipc, allocator, of a peak its loop and steps."""
    more = (row["loop"], row["steps"]) if row["part"] == PEAK else ()
    return row["ipc"], row["memory"], *more


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = benchmark_parser("bench.loops", __doc__, "loops", unit="process")
    add = parser.add_argument
    add("--method", choices=METHODS, default="dm", help="which loop (%(default)s)")
    add("--ipc", type=int, nargs="+", default=[1, 10, 50], help="images per class (%(default)s)")
    add("--memory", choices=MEMORY, default=list(MEMORY), nargs="+", metavar="NAME",
        help="glibc's allocator, of default and kept (%(default)s); a GPU has its own")  # fmt: skip
    add("--budget", type=float, default=20.0, help="seconds for each race (%(default)s)")
    add("--rounds", type=int, default=5,
        help="of a race at least, however long they take (%(default)s)")  # fmt: skip
    add("--variants", choices=VARIANTS, default=list(VARIANTS), nargs="+", metavar="NAME",
        help="of our loop: exact, cmi-bf16, bf16, compile, bf16-compile (%(default)s); "
        "bfloat16 takes minutes on a CPU without instructions for it")  # fmt: skip
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch (%(default)s)")
    add("--quick", action="store_true", help="a look: tiny networks, ipc 2, nothing compiled")
    args = parser.parse_args()
    if args.name == parser.get_default("name") and args.method != "dm":
        args.name += f"-{args.method}"
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse()
    torch.set_num_threads(args.threads)
    sizes, rounds, variants = Sizes(), (args.rounds, 2000), args.variants
    if args.quick:
        sizes, rounds, variants, args.ipc = QUICK, (2, 5), ["exact", "cmi-bf16", "bf16"], [2]
        args.budget = min(args.budget, 1.0)
    if torch.device(args.device).type == "cuda":
        args.memory = ["default"]
    chosen = variants_of(args.method, variants)
    settings: Row = {"method": args.method, "sizes": asdict(sizes)}
    settings |= {"budget": args.budget, "device": args.device}
    settings |= {"rounds": rounds[0], "variants": [VARIANTS[name].loop for name in chosen]}
    settings["arguments"] = f"--ipc {' '.join(map(str, args.ipc))} --rounds {rounds[0]}"
    if args.memory != list(MEMORY):
        settings["arguments"] += f" --memory {' '.join(args.memory)}"
    if args.variants != list(VARIANTS):
        settings["arguments"] += f" --variants {' '.join(args.variants)}"
    record = new_record("loops", args, settings)

    def case(memory: str, ipc: int) -> Case:
        return Case(args.method, sizes, ipc, memory, chosen, args.device, args.threads,
                    args.budget, rounds)  # fmt: skip

    jobs: list[tuple[Any, ...]] = [
        (measure, case(*setting)) for setting in itertools.product(args.memory, args.ipc)
    ]
    if has_peaks(args.method):
        runs = itertools.product(args.ipc, sizes.peaks, (PLAIN, OURS))
        jobs += [(measure_peak, case("returned", ipc), loop, steps) for ipc, steps, loop in runs]
    saved = {_job_of(row) for row in record.rows}
    for function, of_job, *rest in (bar := tqdm(jobs, unit="process")):
        bar.set_postfix_str(f"ipc {of_job.ipc}, memory {of_job.memory}")
        if (of_job.ipc, of_job.memory, *rest) in saved:
            continue
        rows = apart(function, of_job, *rest, allocator=ALLOCATORS[of_job.memory])
        add_rows(record, args, rows)
    finish(record, args, report)


if __name__ == "__main__":
    main()
