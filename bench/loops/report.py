"""What `bench.loops` measured, in Markdown: tables of parts and of memory, and the goals."""

from __future__ import annotations

from collections.abc import Mapping

from bench.harness.records import (
    Record,
    Row,
    busy_warning,
    bytes_text,
    machine_line,
    seconds_text,
    spread_text,
    table,
)
from bench.loops import dc_parts, dm_parts, mtt_parts
from bench.loops.setup import OURS, PLAIN

OUTER, PEAK = "outer iteration", "peak"
# The part that all others are in, or most of them.
WHOLE = {
    "dm": dm_parts.STEP,
    "dc": dc_parts.UPDATE,
    "dsa": dc_parts.UPDATE,
    "mtt": mtt_parts.ITERATION,
}

# What was set out to be reached on a CPU: times as fast as the plain loop, by allocator, variant
# and ipc; and the peak of most student steps over that of one.
GOALS: dict[str, dict[tuple[str, str, int], float]] = {
    "dm": {
        ("default", "ours", 1): 1.9,
        ("default", "ours", 10): 1.4,
        ("default", "ours", 50): 1.35,
        ("kept", "ours, compiled", 1): 1.25,
        ("kept", "ours, compiled", 10): 1.25,
        ("default", "ours, bf16", 1): 2.2,
        ("default", "ours, bf16", 10): 1.5,
    },
    "dc": {(memory, OURS, 10): 1.3 for memory in ("default", "kept")},
    "dsa": {(memory, OURS, 10): 1.3 for memory in ("default", "kept")},
    "mtt": {(memory, OURS, ipc): 0.67 for memory in ("default", "kept") for ipc in (1, 10, 50)},
}
GPU_GOALS: dict[str, dict[tuple[str, str, int], float]] = {
    "dm": {},
    "dc": {("default", OURS, 10): 3},
    "dsa": {("default", OURS, 10): 3},
    "mtt": {("default", OURS, ipc): 0.67 for ipc in (1, 10, 50)},
}
PEAK_GOAL = 1.2


def report(record: Record) -> str:
    """Render the record as Markdown."""
    parts = [f"`{machine_line(record.machine)}`", *busy_warning(record)]
    method = record.settings.get("method", "dm")  # older records are of DM
    goals = (GPU_GOALS if "gpu" in record.machine else GOALS)[method]
    for memory, ipc in dict.fromkeys((row["memory"], row["ipc"]) for row in record.rows):
        rows = [row for row in record.rows if (row["memory"], row["ipc"]) == (memory, ipc)]
        if rows[0]["part"] == PEAK:
            parts += [f"### ipc {ipc}, peak memory", peaks_table(rows), peaks_summary(rows)]
            continue
        parts += [f"### ipc {ipc}, memory: {memory}", times_table(rows)]
        parts += ["\n".join(f"- {line}" for line in summary(rows, WHOLE[method], goals))]
    return "\n\n".join(parts)


def times_table(rows: list[Row]) -> str:
    """Every part and loop of one ipc and allocator."""
    header = "part|loop|median|20 .. 80 %|x plain|/ convolutions|page faults"
    lines = [
        (
            row["part"],
            row["loop"],
            seconds_text(row["seconds"]),
            spread_text(row) if "p20" in row else "-",
            f"{row['speedup_over_plain']:.2f}" if "speedup_over_plain" in row else "-",
            f"{row['over_convolutions']:.2f}" if "over_convolutions" in row else "-",
            row.get("page_faults", "-"),
        )
        for row in rows
    ]
    return table(header.split("|"), lines)


def summary(rows: list[Row], whole: str, goals: Mapping[tuple[str, str, int], float]) -> list[str]:
    """Each of our loops against the plain one: time, its goal if there is one, and numbers."""
    lines = []
    for row in rows:
        if row["part"] not in (whole, OUTER) or not row["loop"].startswith(OURS):
            continue
        if "speedup_over_plain" not in row:
            continue
        goal = goals.get((row["memory"], row["loop"], row["ipc"]))
        part = "" if row["part"] == whole else f", {row['part']}"
        lines.append(
            f"{row['loop']}{part}: {row['speedup_over_plain']:.2f} times as fast as the plain loop"
            + (f" (goal {goal:g})" if goal else "")
        )
        if "loss_error" in row:
            lines[-1] += (
                f"; its loss is off by {row['loss_error']:.1e}, "
                f"the gradient by {row['gradient_error']:.1e}"
            )
    return lines


def peaks_table(rows: list[Row]) -> str:
    """Memory of every number of student steps: an iteration's own, and with all else there is."""
    found = {(row["steps"], row["loop"]): row for row in rows}
    lines = []
    for steps in dict.fromkeys(row["steps"] for row in rows):
        line = [steps]
        for loop in (PLAIN, OURS):
            peaks = [found[steps, loop][name] for name in ("peak_bytes", "whole_bytes")]
            line += ["may not fit" if peak is None else bytes_text(peak) for peak in peaks]
        lines.append(line)
    header = [f"{loop}{what}" for loop in (PLAIN, OURS) for what in ("", ", in all")]
    return table(["student steps", *header], lines)


def peaks_summary(rows: list[Row]) -> str:
    """How our memory grows with the steps."""
    ours = {row["steps"]: row for row in rows if row["loop"] == OURS}
    least, most = min(ours), max(ours)
    growth = [ours[most][name] / ours[least][name] for name in ("whole_bytes", "peak_bytes")]
    return (
        f"- {OURS}: {most} steps take {growth[0]:.2f} times the memory of {least} in all (goal "
        f"{PEAK_GOAL:g} at most), {growth[1]:.2f} times without what was there before"
    )
