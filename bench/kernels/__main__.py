"""Time and memory of every provider over shapes, dtypes and modes: tables, JSON and CSV.

python -m bench.kernels --quick
python -m bench.kernels --name cpu --sweeps ipc channels classes

Keep the machine idle meanwhile.
"""

from __future__ import annotations

import argparse
from typing import Any

from tqdm import tqdm

from bench.harness.command import add_rows, benchmark_parser, finish, new_record
from bench.harness.providers import PROVIDERS, USUAL
from bench.harness.shapes import SETS, SWEEPS, shapes_of
from bench.kernels.measure import measure
from bench.kernels.report import report

DTYPES = ["float32", "bfloat16", "float16", "float64"]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = benchmark_parser("bench.kernels", __doc__, "kernels", unit="shape")
    add = parser.add_argument

    def several(flag: str, default: list[str], choices: Any, text: str) -> None:
        listed = f"{text} {', '.join(choices)} (%(default)s)"
        add(flag, nargs="+", metavar="NAME", default=default, choices=choices, help=listed)

    add("--shapes", nargs="+", metavar="NAME", default=["headline"],
        help=f"sets ({', '.join(SETS)}) or single ones such as 10x10x512")  # fmt: skip
    several("--providers", list(USUAL), PROVIDERS, "whom to time, of")
    several("--dtypes", DTYPES[:2], DTYPES, "of the features, of")
    several("--sweeps", [], SWEEPS, "also how time of value+gradient in float32 grows with")
    add("--spreads", nargs="*", type=float, metavar="S", default=[0.1, 0.01],
        help="also time ours with features of these spreads beside standard normal ones, "
        "for a smaller KL takes a longer form of the value (0.1 0.01)")  # fmt: skip
    add("--budget", type=float, default=4.0,
        help="seconds for each shape, dtype and mode (%(default)s)")  # fmt: skip
    add("--no-memory", action="store_true",
        help="skip peak memory, which on a CPU takes a process each")  # fmt: skip
    add("--quick", action="store_true",
        help="half a minute's look: float32, the three smallest shapes, no memory")  # fmt: skip
    return parser.parse_args()


def arguments_of(args: argparse.Namespace) -> str:
    """What was measured, as the command line says it."""
    lists = {name: getattr(args, name) for name in ("shapes", "providers", "dtypes", "sweeps")}
    words = [f"--{name} {' '.join(chosen)}" for name, chosen in lists.items() if chosen]
    return " ".join([*words, *(["--no-memory"] if args.no_memory else [])])


def main() -> None:
    """Measure, print, write."""
    args = parse()
    shapes = shapes_of(args.shapes)
    if args.quick:
        shapes, args.dtypes, args.no_memory = shapes[:3], ["float32"], True
        args.budget = min(args.budget, 0.5)
    cells = [("shapes", shape, dtype) for dtype in args.dtypes for shape in shapes]
    swept = dict.fromkeys(shape for name in args.sweeps for shape in SWEEPS[name])
    cells += [("sweep", shape, "float32") for shape in swept if shape not in shapes]
    settings = {"budget": args.budget, "device": args.device, "spreads": args.spreads}
    record = new_record("kernels", args, settings | {"arguments": arguments_of(args)})
    saved = {(row["shape"], row["dtype"]) for row in record.rows}
    progress = tqdm(cells, unit="shape", dynamic_ncols=True)
    for group, shape, dtype in progress:
        progress.set_postfix_str(f"{shape} {dtype}")
        if (str(shape), dtype) in saved:
            continue
        modes = ["value", "value+gradient"] if group == "shapes" else ["value+gradient"]
        memory = group == "shapes" and not args.no_memory
        spreads = args.spreads if group == "shapes" else []
        mine = measure(
            shape, dtype, modes, args.providers, args.device, args.budget, memory, spreads
        )
        add_rows(record, args, [{"group": group, **row} for row in mine])
    finish(record, args, report)


if __name__ == "__main__":
    main()
