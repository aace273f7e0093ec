"""The record of what loops ask of a GPU: its rows, and its page."""

from __future__ import annotations

from typing import Any

from bench.budget.budgets import GOALS, Goal
from bench.budget.count import NUMBERS, Count
from bench.budget.loops import Counts
from bench.budget.prediction import milliseconds
from bench.harness.records import Record, Row, head_of
from bench.harness.tables import bytes_text, table


def rows_of(loop: str, counts: Counts) -> list[Row]:
    """A row for each part of a loop."""
    found = []
    for part, count in counts.items():
        row: Row = {"loop": loop, "part": part}
        row |= {name: getattr(count, name) for name in NUMBERS}
        goal = GOALS.get((loop, part), Goal())
        row |= {f"{name}_goal": number for name, number in goal._asdict().items()}
        row["lines"] = "; ".join(f"{n} x {line}" for line, n in count.lines.most_common())
        found.append(row)
    return found


def report(record: Record) -> str:
    """Render the record as Markdown."""
    numbers: list[list[str]] = []
    guesses: list[list[str]] = []
    parts_of: dict[str, list[str]] = {}  # by line
    for row in record.rows:
        part = f"{row['loop']}: {row['part']}"
        numbers.append(
            [
                part,
                *(_beside_goal(row, name) for name in ("launches", "calls", "copies", "waits")),
                bytes_text(row["copied_bytes"]) if row["copies"] else "-",
                bytes_text(row["bytes"]),
                f"{row['flops'] / 1e9:,.0f}" if row["flops"] else "-",
            ]
        )
        predicted = milliseconds(Count(**{name: row[name] for name in NUMBERS}))
        guesses.append([part, *(f"{each:.2f}" for each in predicted)])
        for text in row["lines"].split("; ") if row["lines"] else ():
            times, line = text.split(" x ", 1)
            parts_of.setdefault(line, []).append(f"{part} {times}")
    header = ["what", "launches", "calls", "copies", "waits", "copied", "read and written", "GFLOP"]
    return "\n\n".join(
        [
            *head_of(record),
            "Counted, and in brackets the goal where there is one. GFLOP are of convolutions and "
            "products of matrices:",
            table(header, numbers),
            "Milliseconds on an H200, predicted by `bench/budget/prediction.py` and not measured:",
            table(["what", "device", "CPU", "both"], guesses),
            "Lines that copy or wait, and how often for each part:",
            "\n".join(f"- `{line}`: {'; '.join(parts)}" for line, parts in parts_of.items()),
        ]
    )


def _beside_goal(row: dict[str, Any], name: str) -> str:
    goal = row.get(f"{name}_goal")
    return f"{row[name]:,}" + ("" if goal is None else f" ({goal:,})")
