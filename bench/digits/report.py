"""What a record of the digits shows."""

from __future__ import annotations

import statistics

from bench.harness.records import Record
from bench.harness.tables import table


def report(record: Record) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    groups: dict[tuple[str, int, float, str], list[float]] = {}
    for row in record.rows:
        key = row["method"], row["ipc"], row["weight"], row.get("settings", "")
        groups.setdefault(key, []).append(row["accuracy"] * 100)
    lines = []
    real = {"random": "random real images", "all": "all real images"}
    for (method, ipc, weight, given), found in sorted(
        groups.items(), key=lambda g: (g[0][1], g[0])
    ):
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        name = real.get(method, method.upper()) + (" + CMI" if weight else "")
        name += f", {given}" if given else ""
        accuracy = f"{statistics.mean(found):.1f} ± {spread:.1f}"
        lines.append([ipc or "all", name, f"{weight:g}", accuracy, len(found)])
    shown = table(["images per class", "set", "weight of CMI", "accuracy, %", "seeds"], lines)
    networks = f"{record.settings['networks']} networks on every set."
    judged = {"held out": "training images that were held out"}
    judge = record.rows[0]["judge"]
    return f"{shown}\n\nJudged by {judged.get(judge, f'the real {judge} images')}; {networks}"
