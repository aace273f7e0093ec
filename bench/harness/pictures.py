"""How the pictures of recorded results look, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench.harness.records import Record, machine_line

matplotlib.use("Agg")

INK, FAINT = "#333333", "#8A8A8A"
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


def save(figure: Figure, record: Record, path: Path) -> Path:
    """Write with a legend above and the machine below."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel(machine_line(record.machine), fontsize=7, color=FAINT)
    figure.savefig(path, dpi=140)
    return path
