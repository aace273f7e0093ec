"""Time and memory of every provider over shapes, dtypes and modes: tables, JSON, CSV and plots.

python -m bench.kernels --quick
python -m bench.kernels --name cpu --sweeps ipc channels classes
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from bench import plots
from bench.harness import (
    COPY,
    EXP,
    FRESH_COPY,
    FRESH_EXP,
    bytes_moved,
    floors,
    race,
    random_features,
)
from bench.memory import peak_extra_bytes
from bench.providers import MODES, PROVIDERS, contend, make_losses
from bench.records import (
    RESULTS,
    Record,
    Row,
    busy_warning,
    bytes_text,
    geometric_mean,
    machine,
    machine_line,
    seconds_text,
    table,
)


class Shape(NamedTuple):
    """An equal-classes problem: C classes of n rows with M channels."""

    classes: int
    rows: int
    channels: int

    def __str__(self) -> str:
        """Give the form used in tables and files."""
        return f"{self.classes}x{self.rows}x{self.channels}"

    @property
    def elements(self) -> int:
        """Entries of the feature matrix."""
        return self.classes * self.rows * self.channels


HEADLINE = Shape(10, 10, 512)  # CIFAR-10 at ipc 10, what most published runs have
FIVE = (
    Shape(10, 30, 512),
    Shape(43, 31, 640),
    Shape(200, 50, 1024),
    Shape(9, 700, 2048),
    Shape(1000, 10, 2048),
)
THREE_LARGEST = tuple(sorted(FIVE, key=lambda shape: shape.elements)[-3:])
SWEEPS = {
    "ipc": tuple(Shape(10, n, 512) for n in (1, 10, 50, 200, 500)),
    "channels": tuple(Shape(10, 50, m) for m in (64, 256, 1024, 4096, 16384, 32768)),
    "classes": tuple(Shape(c, 10, 512) for c in (1, 3, 10, 30, 100, 300, 1000)),
}


def measure(
    shape: Shape, dtype: str, modes: Iterable[str], providers: list[str], device: str, budget: float
) -> list[Row]:
    """One row a contender and mode, with what follows from the times."""
    torch_dtype: torch.dtype = getattr(torch, dtype)
    inputs = random_features(shape, torch_dtype, device)
    losses = make_losses(providers, inputs[0], None, tqdm.write)
    rows = []
    for mode in modes:
        contenders = {name: contend(loss, mode, inputs) for name, loss in losses.items()}
        times = race(contenders | floors(inputs), budget=budget, device=device)
        moved = bytes_moved(shape.elements, torch_dtype.itemsize, mode)
        copied = 2 * shape.elements * torch_dtype.itemsize
        for name, time in times.items():
            row: Row = {"shape": str(shape), **shape._asdict(), "dtype": dtype, "mode": mode}
            row |= {"contender": name, "seconds": time.median, "p20": time.low, "p80": time.high}
            row |= {
                "samples": time.samples,
                "others": time.others,
                "over_exp": time.median / times[FRESH_EXP].median,
            }
            row["over_exp_out"] = time.median / times[EXP].median
            for other in [other for other in losses if other != "cmikernels"]:
                row[f"speedup_over_{other}"] = times[other].median / time.median
            size = copied if name in (COPY, FRESH_COPY) else moved if name in losses else None
            if size is not None:
                rate = size / time.median
                row["gb_per_s"] = rate / 1e9
                row["of_copy"] = rate * times[COPY].median / copied
                row["of_fresh_copy"] = rate * times[FRESH_COPY].median / copied
            rows.append({key: _short(value) for key, value in row.items()})
    return rows


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def add_memory(rows: list[Row], shape: Shape, dtype: str, device: str) -> None:
    """Put the peak extra memory of value+gradient into that mode's rows."""
    for row in rows:
        if row["mode"] == "value+gradient" and row["contender"] in PROVIDERS:
            row["peak_extra_bytes"] = peak_extra_bytes(row["contender"], shape, dtype, device)


def times_table(rows: list[Row], mode: str, dtype: str) -> str:
    """Every shape and provider of one mode and dtype."""
    lines = []
    for row in rows:
        if (row["mode"], row["dtype"]) != (mode, dtype) or row["contender"] not in PROVIDERS:
            continue
        factors = [row.get(f"speedup_over_{other}") for other in ("published", "compile")]
        memory = row.get("peak_extra_bytes")
        gradient = row["classes"] * row["rows"] * row["channels"] * getattr(torch, dtype).itemsize
        lines.append(
            (
                row["shape"],
                PROVIDERS[row["contender"]].label,
                seconds_text(row["seconds"]),
                f"{seconds_text(row['p20'])} .. {seconds_text(row['p80'])}",
                *("-" if factor is None else f"{factor:.3g}" for factor in factors),
                f"{row['over_exp']:.2f}",
                f"{row['gb_per_s']:.3g}" if "gb_per_s" in row else "-",
                f"{row['of_copy']:.0%}" if "of_copy" in row else "-",
                "-" if memory is None else f"{bytes_text(memory)} ({memory / gradient:.2f})",
            )
        )
    header = "C x n x M|provider|median|20 .. 80 %|x published|x compile|x exp|GB/s|of copy"
    return table([*header.split("|"), "peak memory (/ gradient)"], lines)


def summary(rows: list[Row], mode: str, dtype: str) -> list[str]:
    """Compare ours with the others over the five shapes by geometric mean."""
    ours = {
        row["shape"]: row
        for row in rows
        if (row["mode"], row["dtype"], row["contender"]) == (mode, dtype, "cmikernels")
    }
    lines = []
    five = [ours[str(shape)] for shape in FIVE if str(shape) in ours]
    for other in ("published", "compile"):
        factors = [row[key] for row in five if (key := f"speedup_over_{other}") in row]
        if factors:
            mean = geometric_mean(factors)
            lines.append(
                f"{mean:.3g} times as fast as {PROVIDERS[other].label} "
                f"(geometric mean over {len(factors)} shapes: "
                f"{min(factors):.3g} to {max(factors):.3g})"
            )
    large = [ours[str(shape)] for shape in THREE_LARGEST if str(shape) in ours]
    if large:
        mean = geometric_mean(row["over_exp"] for row in large)
        worst = max(row["over_exp"] for row in large)
        preallocated = geometric_mean(row["over_exp_out"] for row in large)
        lines.append(
            f"{mean:.2f} times one torch.exp on the {len(large)} largest (worst {worst:.2f}; "
            f"{preallocated:.2f} times an exp into memory already there)"
        )
    return lines


def report(record: Record) -> str:
    """Render all of a record as Markdown."""
    parts = [f"`{machine_line(record.machine)}`", *busy_warning(record)]
    rows = [row for row in record.rows if row["group"] == "shapes"]
    for dtype, mode in dict.fromkeys((row["dtype"], row["mode"]) for row in rows):
        parts += [f"### {mode}, {dtype}", times_table(rows, mode, dtype)]
        lines = [f"- cmikernels: {line}" for line in summary(rows, mode, dtype)]
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels",
        description="Time and memory of every provider over shapes, dtypes and modes.",
        epilog="Ratios: 'x published' and 'x exp' compare with the published expression and with "
        "one torch.exp over the features, 'of copy' with a copy of the features into memory "
        "already there, all in the same process and in turn. Keep the machine idle meanwhile.",
    )
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
    dtypes, modes = ["float32", "bfloat16", "float16", "float64"], ["value", "value+gradient"]
    all_of = "of {} (%(default)s)"
    add("--name", default="kernels", help="write bench/results/NAME.json, NAME.csv, NAME-*.png")
    add(
        "--providers",
        choices=PROVIDERS,
        default=list(PROVIDERS),
        **several,
        help="whom to time, " + all_of.format(", ".join(PROVIDERS)),
    )
    add(
        "--modes",
        choices=MODES,
        default=modes,
        **several,
        help="what to ask of them, " + all_of.format(", ".join(MODES)),
    )
    add(
        "--dtypes",
        choices=dtypes,
        default=dtypes[:2],
        **several,
        help="of the features, " + all_of.format(", ".join(dtypes)),
    )
    add(
        "--sweeps",
        choices=SWEEPS,
        default=[],
        **several,
        help=f"also how time grows with {', '.join(SWEEPS)} (value+gradient, float32)",
    )
    add(
        "--budget",
        type=float,
        default=4.0,
        help="seconds for each shape, dtype and mode, shared by all who are timed (%(default)s)",
    )
    add(
        "--no-memory",
        action="store_true",
        help="skip peak memory, which takes a process for every shape, dtype and provider",
    )
    add("--device", default="cpu", help="where the features are: cpu or cuda (%(default)s)")
    add("--threads", type=int, help="of torch and cmikernels (default: torch's own choice)")
    add("--date", help="to record with the results (default: none)")
    add("--out", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    add(
        "--quick",
        action="store_true",
        help="half a minute's look: float32, the three smallest shapes, no memory",
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = [HEADLINE, *FIVE]
    if args.quick:
        shapes, args.dtypes, args.no_memory = shapes[:3], ["float32"], True
        args.budget = min(args.budget, 0.5)
    cells = [("shapes", shape, dtype, args.modes) for dtype in args.dtypes for shape in shapes]
    swept = dict.fromkeys(shape for name in args.sweeps for shape in SWEEPS[name])
    cells += [
        ("sweep", shape, "float32", ["value+gradient"]) for shape in swept if shape not in shapes
    ]
    rows: list[Row] = []
    progress = tqdm(cells, unit="shape", dynamic_ncols=True)
    for group, shape, dtype, modes in progress:
        progress.set_postfix_str(f"{shape} {dtype}")
        mine = measure(shape, dtype, modes, args.providers, args.device, args.budget)
        if group == "shapes" and not args.no_memory:
            add_memory(mine, shape, dtype, args.device)
        rows += [{"group": group, **row} for row in mine]
    settings = {"budget": args.budget, "device": args.device}
    record = Record("kernels", machine(args.device, args.date), settings, rows)
    path = record.write(args.name, args.out)
    print(report(record))
    print("\nwritten:", path, *plots.kernels(record, path.with_suffix("")))


if __name__ == "__main__":
    main()
