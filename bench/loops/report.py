"""What `bench.loops` measured, in Markdown: tables of steps, of their parts and of memory."""

from __future__ import annotations

from bench.harness.records import Record, Row, head_of
from bench.harness.tables import bytes_text, ratio_text, seconds_text, spread_text, table

PLAIN, OURS, CONVOLUTIONS = "plain", "ours", "convolutions"
ITERATION, FIRST, LATER, PEAK = "iteration", "first step", "later steps", "peak"
# Those that a summary is made of; older records have the other names.
WHOLE = (ITERATION, FIRST, LATER, "step", "update", "outer iteration")


def report(record: Record) -> str:
    """Render the record as Markdown."""
    parts = head_of(record)
    for memory, ipc in dict.fromkeys((row["memory"], row["ipc"]) for row in record.rows):
        rows = [row for row in record.rows if (row["memory"], row["ipc"]) == (memory, ipc)]
        if rows[0]["part"] == PEAK:
            parts += [f"### ipc {ipc}, peak memory", peaks_table(rows), peaks_summary(rows)]
            continue
        parts += [f"### ipc {ipc}, memory: {memory}", times_table(rows)]
        parts += ["\n".join(f"- {line}" for line in summary(rows))]
    return "\n\n".join(parts)


def times_table(rows: list[Row]) -> str:
    """Every part and loop of one ipc and allocator."""
    header = ["part", "loop", "median", "20 .. 80 %", "x plain", "/ convolutions", "page faults"]
    profiled = any("convolution_seconds" in row for row in rows)
    lines = [
        [
            row["part"],
            row["loop"],
            seconds_text(row["seconds"]),
            spread_text(row) if "p20" in row else "-",
            ratio_text(row.get("speedup_over_plain")),
            ratio_text(row.get("over_convolutions")),
            row.get("page_faults", "-"),
            *([_convolutions_text(row)] if profiled else []),
        ]
        for row in rows
    ]
    return table([*header, *(["convolutions in it"] if profiled else [])], lines)


def _convolutions_text(row: Row) -> str:
    seconds = row.get("convolution_seconds")
    return "-" if seconds is None else seconds_text(seconds) if seconds else "none"


def summary(rows: list[Row]) -> list[str]:
    """Each of our loops against the plain one: time and numbers."""
    lines = []
    for row in rows:
        ours = row["part"] in WHOLE and row["loop"].startswith(OURS)
        if ours and "speedup_over_plain" in row:
            speedup = f"{row['speedup_over_plain']:.2f} times as fast as the plain loop"
            lines.append(f"{row['loop']}, {row['part']}: {speedup}")
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
        f"- {OURS}: {most} steps take {growth[0]:.2f} times the memory of {least} in all, "
        f"{growth[1]:.2f} times without what was there before"
    )
