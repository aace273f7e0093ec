"""What `bench.kernels` measured: tables in Markdown, as suits the device."""

from __future__ import annotations

from collections.abc import Collection

from bench.gpu import report as gpu_report
from bench.gpu.replay import LAUNCH
from bench.harness.providers import PROVIDERS
from bench.harness.race import COPY
from bench.harness.records import Record, Row, feature_bytes, head_of, rows_of, spread_of
from bench.harness.shapes import FIVE, THREE_LARGEST
from bench.harness.tables import (
    Column,
    bytes_text,
    cells,
    digits,
    geometric_mean,
    seconds_text,
    spread_text,
    table,
)

SPREADS = (
    "By the spread of the features, whose KL is about half its square. Those above have spread 1:"
)
COLUMNS: tuple[Column, ...] = (
    ("median", "seconds", seconds_text),
    ("20 .. 80 %", "spread", str),
    ("x published", "speedup_over_published", digits(".3g")),
    ("x compile", "speedup_over_compile", digits(".3g")),
    ("x exp", "over_exp", digits(".2f")),
    ("GB/s", "gb_per_s", digits(".3g")),
    ("of copy", "of_copy", digits(".0%")),
    ("peak memory (/ gradient)", "memory", str),
)


def times_table(rows: list[Row], columns: Collection[Column], *floors: str) -> str:
    """Every shape of one mode and dtype, with its providers and these floors."""
    lines = []
    for row in rows:
        name = row["contender"]
        if name in PROVIDERS or name in floors:
            shown = {**row, "spread": spread_text(row)}
            if memory := row.get("peak_extra_bytes"):
                shown["memory"] = f"{bytes_text(memory)} ({memory / feature_bytes(row):.2f})"
            if row.keys() >= {"predicted_seconds", "replay_seconds"}:
                shown["over_prediction"] = row["replay_seconds"] / row["predicted_seconds"]
            label = PROVIDERS[name].label if name in PROVIDERS else name
            lines.append([row["shape"], label, *cells(shown, columns)])
    return table(["C x n x M", "provider", *(header for header, *_ in columns)], lines)


def spreads_table(rows: list[Row], clock: str) -> str:
    """Ours by the spread of the features: time, the same over that of spread 1, share of a copy."""
    columns: list[Column] = [
        ("median", f"{clock}seconds", seconds_text),
        ("x spread 1", f"{clock}over_normal", digits(".2f")),
        ("of copy", f"{clock}of_copy", digits(".0%")),
    ]
    lines = []
    for shape, name in dict.fromkeys((row["shape"], row["contender"]) for row in rows):
        mine = rows_of(rows, shape=shape, contender=name)
        if len(mine) > 1:  # of several spreads
            label = PROVIDERS[name].label
            lines += [[shape, label, f"{spread_of(row):g}", *cells(row, columns)] for row in mine]
    return table(["C x n x M", "provider", "spread", *(header for header, *_ in columns)], lines)


def summary(rows: list[Row]) -> list[str]:
    """Compare ours with the others over the five shapes by geometric mean."""
    ours = {row["shape"]: row for row in rows_of(rows, contender="cmikernels")}
    lines = []
    five = [ours[str(shape)] for shape in FIVE if str(shape) in ours]
    for other in ("published", "compile"):
        factors = [row[key] for row in five if (key := f"speedup_over_{other}") in row]
        if factors:
            lines.append(
                f"{geometric_mean(factors):.3g} times as fast as {PROVIDERS[other].label} "
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
    on_gpu = "gpu" in record.machine
    parts = head_of(record)
    if on_gpu:  # whose times hardly depend on what else the cores do
        parts = [parts[0], gpu_report.EXPLANATION, gpu_report.ratios(record.rows)]
    rows = rows_of(record.rows, group="shapes")
    for dtype, mode in dict.fromkeys((row["dtype"], row["mode"]) for row in rows):
        every_spread = rows_of(rows, dtype=dtype, mode=mode)
        chosen = [row for row in every_spread if spread_of(row) == 1]
        parts.append(f"### {mode}, {dtype}")
        if on_gpu:
            parts.append(times_table(chosen, gpu_report.COLUMNS, COPY, LAUNCH))
        else:
            parts.append(times_table(chosen, COLUMNS))
            lines = [f"- cmikernels: {line}" for line in summary(chosen)]
            parts += ["\n".join(lines)] if lines else []
        if len(chosen) < len(every_spread):
            parts += [SPREADS, spreads_table(every_spread, "replay_" if on_gpu else "")]
    return "\n\n".join(parts)
