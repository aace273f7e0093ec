"""What the pictures share. They need a Record only, so that old runs can be drawn again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.providers import PROVIDERS
from bench.harness.records import Record, Row, machine_line

matplotlib.use("Agg")

INK, FAINT = "#333333", "#8A8A8A"
OURS = tuple(name for name, provider in PROVIDERS.items() if provider.ours)
STYLE: Any = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def bars(
    rows: list[Row], field: str, text: Callable[[float], str], *, skip: str = "", start: float = 0.0
) -> tuple[Figure, Axes]:
    """Horizontal bars of a field, a shape a line and a provider a colour, each with its number."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    names = [
        name for name in PROVIDERS if name != skip and any(row["contender"] == name for row in rows)
    ]
    found = {(row["shape"], row["contender"]): row.get(field) for row in rows}
    figure = Figure(figsize=(9, 1.8 + 0.18 * len(shapes) * (len(names) + 1)), layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        offset = (place - (len(names) - 1) / 2) * height
        values = [found.get((shape, name)) for shape in shapes]
        numbers = [float("nan") if value is None else value for value in values]
        drawn = axis.barh(
            [group + offset for group in range(len(shapes))],
            [number - start for number in numbers],
            height * 0.92,
            left=start,
            color=PROVIDERS[name].color,
            label=PROVIDERS[name].label,
        )
        axis.bar_label(drawn, [text(number) for number in numbers], padding=3, fontsize=9)
    axis.set_yticks(range(len(shapes)), [shape.replace("x", " x ") for shape in shapes])
    axis.set_ylabel("classes x rows x channels")
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")
    axis.axvline(1, color=INK, lw=1)
    axis.set_axisbelow(True)
    return figure, axis


def shares_of_copy(rows: list[Row], field: str, title: str, record: Record, path: Path) -> Path:
    """Bars of the bandwidth of each provider as a share of a copy's."""
    figure, axis = bars(rows, field, lambda share: f"{share:.1%}")
    axis.set_title(title)
    axis.set_xlabel("share of a copy's bandwidth (100 % is the floor: every byte moved once)")
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set_xlim(0, max(1.08, axis.get_xlim()[1] * 1.08))
    return save(figure, record, path)


def save(figure: Figure, record: Record, path: Path) -> Path:
    """Write with a legend above and the machine below."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel(machine_line(record.machine), fontsize=7, color=FAINT)
    figure.savefig(path, dpi=140)
    return path
