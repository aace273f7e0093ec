"""Time and memory of every provider over shapes, dtypes and modes: tables, JSON, CSV and plots.

python -m bench.kernels --quick
python -m bench.kernels --name cpu --sweeps ipc channels classes
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.gpu import plots as gpu_plots
from bench.gpu import report as gpu_report
from bench.gpu.launches import add_launches
from bench.harness import plots
from bench.harness.providers import MODES, PROVIDERS, USUAL
from bench.harness.records import (
    Record,
    Row,
    add_output_arguments,
    add_resume_argument,
    busy_warning,
    machine,
    machine_line,
    saved_rows,
)
from bench.harness.shapes import FIVE, SETS, SWEEPS, THREE_LARGEST, shapes_of
from bench.harness.tables import bytes_text, geometric_mean, seconds_text, spread_text, table
from bench.kernels.measure import measure


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
                spread_text(row),
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
    if "gpu" in record.machine:
        return gpu_report.report(record)
    parts = [f"`{machine_line(record.machine)}`", *busy_warning(record)]
    rows = [row for row in record.rows if row["group"] == "shapes"]
    for dtype, mode in dict.fromkeys((row["dtype"], row["mode"]) for row in rows):
        parts += [f"### {mode}, {dtype}", times_table(rows, mode, dtype)]
        lines = [f"- cmikernels: {line}" for line in summary(rows, mode, dtype)]
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join(parts)


def pictures(record: Record, stem: Path) -> list[Path]:
    """Draw what suits the device."""
    if "gpu" in record.machine:
        return gpu_plots.kernels(record, stem)
    return plots.kernels(record, stem)


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
    add(
        "--shapes",
        default=["headline"],
        **several,
        help=f"sets of them ({', '.join(SETS)}) or single ones such as 10x10x512 (%(default)s)",
    )
    add(
        "--providers",
        choices=PROVIDERS,
        default=list(USUAL),
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
        help="skip peak memory, which on a CPU takes a process for every shape, dtype and provider",
    )
    add("--device", default="cpu", help="where the features are: cpu or cuda (%(default)s)")
    add("--threads", type=int, help="of torch and cmikernels (default: torch's own choice)")
    add(
        "--quick",
        action="store_true",
        help="half a minute's look: float32, the three smallest shapes, no memory",
    )
    add_output_arguments(parser, "kernels")
    add_resume_argument(parser, "shape")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    shapes = shapes_of(args.shapes)
    if args.quick:
        shapes, args.dtypes, args.no_memory = shapes[:3], ["float32"], True
        args.budget = min(args.budget, 0.5)
    cells = [("shapes", shape, dtype, args.modes) for dtype in args.dtypes for shape in shapes]
    swept = dict.fromkeys(shape for name in args.sweeps for shape in SWEEPS[name])
    cells += [
        ("sweep", shape, "float32", ["value+gradient"]) for shape in swept if shape not in shapes
    ]
    settings: Row = {"budget": args.budget, "device": args.device}
    if args.resume:
        settings["key"] = args.resume
    record = Record("kernels", machine(args.device, args.date), settings, [])
    record.rows = saved_rows(args, record.machine, settings)
    saved = {(row["shape"], row["dtype"], row["mode"]) for row in record.rows}
    progress = tqdm(cells, unit="shape", dynamic_ncols=True)
    for group, shape, dtype, modes in progress:
        progress.set_postfix_str(f"{shape} {dtype}")
        modes = [mode for mode in modes if (str(shape), dtype, mode) not in saved]
        if not modes:
            continue
        memory = group == "shapes" and not args.no_memory
        mine = measure(shape, dtype, modes, args.providers, args.device, args.budget, memory)
        record.rows += [{"group": group, **row} for row in mine]
        if args.resume:
            record.write(args.name, args.out, args.json_only)
    if torch.device(args.device).type == "cuda":
        add_launches(record.rows, args.device)
    path = record.write(args.name, args.out, args.json_only)
    print(report(record))
    drawn = [] if args.json_only else pictures(record, path.with_suffix(""))
    print("\nwritten:", path, *drawn)


if __name__ == "__main__":
    main()
