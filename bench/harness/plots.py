"""Pictures of recorded results, PNGs. They need a Record only, so that old runs can be redrawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.providers import PROVIDERS
from bench.harness.race import FRESH_COPY, FRESH_EXP
from bench.harness.records import Record, Row, machine_line

matplotlib.use("Agg")

INK, FAINT = "#333333", "#8A8A8A"
FLOOR_STYLES = {
    FRESH_EXP: ("one torch.exp", (0, (4, 2))),
    FRESH_COPY: ("one copy", (0, (1, 1.5))),
}
SWEPT = {  # axis of a sweep: title, row field, values of the other two fields
    "images per class n": ("rows", {"classes": 10, "channels": 512}),
    "channels M": ("channels", {"classes": 10, "rows": 50}),
    "classes C": ("classes", {"rows": 10, "channels": 512}),
}
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
_UNITS = {1e-6: "1 us", 1e-5: "10 us", 1e-4: "100 us", 1e-3: "1 ms", 1e-2: "10 ms", 1e-1: "100 ms"}
_UNITS |= {1.0: "1 s", 10.0: "10 s"}


def kernels(record: Record, stem: Path) -> list[Path]:
    """Speed-up and copy-fraction bars for the shapes, and the sweeps that were run."""
    written = []
    with matplotlib.rc_context(STYLE):
        for dtype in dict.fromkeys(row["dtype"] for row in record.rows):
            bars = _select(
                record.rows, {"dtype": dtype, "mode": "value+gradient", "group": "shapes"}
            )
            if bars:
                written += [
                    _speedups(bars, dtype, record, Path(f"{stem}-speedup-{dtype}.png")),
                    _copy_fractions(bars, dtype, record, Path(f"{stem}-copy-{dtype}.png")),
                ]
        rows = _select(record.rows, {"dtype": "float32", "mode": "value+gradient"})
        sweeps = {name: _sweep(rows, *SWEPT[name]) for name in SWEPT}
        sweeps = {name: points for name, points in sweeps.items() if len(points) >= 3}
        if sweeps:
            written.append(_growth(sweeps, rows, record, Path(f"{stem}-growth.png")))
    return written


def accuracy(record: Record, path: Path) -> Path:
    """Relative error of value and of gradient against the spread of the rows of a class."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        rows = [row for row in record.rows if row["spread"] is not None]
        for axis, quantity in zip(axes, ("value", "gradient"), strict=True):
            for name in dict.fromkeys(row["contender"] for row in rows):
                points = [row for row in rows if row["contender"] == name]
                provider = PROVIDERS[name]
                axis.plot(
                    [row["spread"] for row in points],
                    [_above_zero(row[f"{quantity}_error"]) for row in points],
                    marker="o", ms=4, lw=2, color=provider.color, label=provider.label,
                )  # fmt: skip
            axis.set(xscale="log", yscale="log", title=f"{quantity}: relative error")
            axis.set_xlabel("spread of a class's rows around its mean (logits)")
            axis.axhline(6e-8, color=FAINT, lw=1, ls=":")
            axis.grid(True)
        axes[0].set_ylabel("worst of the draws, against float64")
        axes[1].text(9e-4, 6.6e-8, "half a float32 step", va="bottom", fontsize=8, color=FAINT)
        return save(figure, record, path)


def _above_zero(error: float | None) -> float:
    """Map an error onto a log axis: exact is drawn at 1e-9, NaN is not drawn."""
    return float("nan") if error is None else max(error, 1e-9)


def bars_by_provider(
    axis: Axes,
    groups: list[str],
    values: dict[str, list[float]],
    text: Callable[[float], str],
    start: float = 0.0,
) -> None:
    """Horizontal bars, a group a line and a provider a colour, each with its number written."""
    height = 0.8 / len(values)
    for place, (name, numbers) in enumerate(values.items()):
        offset = (place - (len(values) - 1) / 2) * height
        bars = axis.barh(
            [group + offset for group in range(len(groups))],
            [number - start for number in numbers],
            height * 0.92,
            left=start,
            color=PROVIDERS[name].color,
            label=PROVIDERS[name].label,
        )
        axis.bar_label(bars, [text(number) for number in numbers], padding=3, fontsize=9)
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.grid(True, axis="x")
    axis.set_axisbelow(True)


def _select(rows: list[Row], wanted: Mapping[str, object]) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _sweep(rows: list[Row], field: str, fixed: dict[str, int]) -> dict[str, list[Row]]:
    """Rows along one field, by contender, in order; empty without at least three points."""
    points: dict[str, list[Row]] = {}
    for row in sorted(_select(rows, fixed), key=lambda row: row[field]):
        points.setdefault(row["contender"], []).append(row)
    longest = max((len(line) for line in points.values()), default=0)
    return points if longest >= 3 else {}


def _bar_values(
    rows: list[Row], field: str, skip: str = ""
) -> tuple[list[str], dict[str, list[float]]]:
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    names = [
        name for name in PROVIDERS if name != skip and any(row["contender"] == name for row in rows)
    ]
    found = {(row["shape"], row["contender"]): row.get(field, float("nan")) for row in rows}
    values = {name: [found.get((shape, name), float("nan")) for shape in shapes] for name in names}
    return [shape.replace("x", " x ") for shape in shapes], values


def _speedups(rows: list[Row], dtype: str, record: Record, path: Path) -> Path:
    shapes, values = _bar_values(rows, "speedup_over_published", skip="published")
    figure, axis = _bar_figure(len(shapes))
    axis.set_xscale("log")
    bars_by_provider(axis, shapes, values, lambda factor: f"{factor:.3g}x", start=1.0)
    axis.set_title(f"Value + gradient, {dtype}: speed-up over the published expression")
    axis.set_xlabel("times as fast as published, eager (log scale)")
    axis.xaxis.set_major_formatter(lambda factor, _: f"{factor:g}x")
    axis.xaxis.set_minor_formatter("")
    axis.axvline(1, color=INK, lw=1)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.8), high * 1.5)
    return save(figure, record, path)


def _copy_fractions(rows: list[Row], dtype: str, record: Record, path: Path) -> Path:
    shapes, values = _bar_values(rows, "of_copy")
    figure, axis = _bar_figure(len(shapes))
    bars_by_provider(axis, shapes, values, lambda share: f"{share:.1%}")
    axis.set_title(f"Value + gradient, {dtype}: bandwidth against a copy of the features")
    axis.set_xlabel("share of a copy's bandwidth (100 % is the floor: every byte moved once)")
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.axvline(1, color=INK, lw=1)
    axis.set_xlim(0, max(1.08, axis.get_xlim()[1] * 1.08))
    return save(figure, record, path)


def _bar_figure(groups: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 1.8 + 0.55 * groups), layout="constrained")
    axis = figure.subplots()
    axis.set_ylabel("classes x rows x channels")
    return figure, axis


def _growth(
    sweeps: dict[str, dict[str, list[Row]]], rows: list[Row], record: Record, path: Path
) -> Path:
    figure = Figure(figsize=(max(9.0, 4.2 * len(sweeps) + 0.6), 4.6), layout="constrained")
    axes = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for axis, (name, lines) in zip(axes, sweeps.items(), strict=True):
        field, fixed = SWEPT[name]
        for contender, points in lines.items():
            if contender not in PROVIDERS and contender not in FLOOR_STYLES:
                continue
            x = [row[field] for row in points]
            y = [row["seconds"] for row in points]
            if contender in PROVIDERS:
                provider = PROVIDERS[contender]
                axis.plot(x, y, marker="o", ms=4, lw=2, color=provider.color, label=provider.label)
                low, high = ([row[edge] for row in points] for edge in ("p20", "p80"))
                axis.fill_between(x, low, high, color=provider.color, alpha=0.2, lw=0)
            else:
                label, dashes = FLOOR_STYLES[contender]
                axis.plot(x, y, lw=1.3, ls=dashes, color=INK, label=label)
        others = ", ".join(f"{value} {key}" for key, value in fixed.items())
        axis.set(xscale="log", yscale="log", xlabel=name, title=f"over {name}\n({others})")
        axis.set_yticks(list(_UNITS), list(_UNITS.values()))
        axis.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
        axis.minorticks_off()
        axis.grid(True)
    seconds = [row["seconds"] for row in rows]
    axes[0].set_ylim(min(seconds) / 1.6, max(seconds) * 1.6)
    axes[0].set_ylabel("value + gradient, one call")
    return save(figure, record, path)


def save(figure: Figure, record: Record, path: Path) -> Path:
    """Write with a legend above and the machine below."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    figure.supxlabel(machine_line(record.machine), fontsize=7, color=FAINT)
    figure.savefig(path, dpi=140)
    return path
