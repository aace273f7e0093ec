"""Pictures of the kernels' recorded results: speed-ups, bandwidth, growth, accuracy.

They need a Record only, so that old runs can be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.pictures import FAINT, INK, STYLE, save
from bench.harness.providers import PROVIDERS
from bench.harness.race import FRESH_COPY, FRESH_EXP
from bench.harness.records import Record, Row, rows_of, spread_of

FLOOR_STYLES = {FRESH_EXP: ("one torch.exp", (0, (4, 2))), FRESH_COPY: ("one copy", (0, (1, 1.5)))}
SWEPT = {  # axis of a sweep: title, row field, values of the other two fields
    "images per class n": ("rows", {"classes": 10, "channels": 512}),
    "channels M": ("channels", {"classes": 10, "rows": 50}),
    "classes C": ("classes", {"rows": 10, "channels": 512}),
}
_UNITS = {1e-6: "1 us", 1e-5: "10 us", 1e-4: "100 us", 1e-3: "1 ms", 1e-2: "10 ms", 1e-1: "100 ms"}
_UNITS |= {1.0: "1 s", 10.0: "10 s"}


def kernels(record: Record, stem: Path) -> list[Path]:
    """Speed-up and copy-fraction bars for the shapes, and the sweeps that were run.

    Of a GPU's record the bars are of the calls that were replayed.
    """
    clock, how = ("replay_", ", replayed") if "gpu" in record.machine else ("", "")
    written = []
    with matplotlib.rc_context(STYLE):
        rows = [row for row in rows_of(record.rows, mode="value+gradient") if spread_of(row) == 1]
        shaped = [row for row in rows_of(rows, group="shapes") if f"{clock}seconds" in row]
        for dtype in dict.fromkeys(row["dtype"] for row in shaped):
            of_shapes = rows_of(shaped, dtype=dtype)
            what = f"Value + gradient, {dtype}{how}"
            if any(f"{clock}speedup_over_published" in row for row in of_shapes):
                path = Path(f"{stem}-speedup-{dtype}.png")
                written.append(_speedups(of_shapes, clock, what, record, path))
            path = Path(f"{stem}-copy-{dtype}.png")
            written.append(_shares_of_copy(of_shapes, clock, what, record, path))
        rows = rows_of(rows, dtype="float32")
        sweeps = {name: points for name in SWEPT if (points := _sweep(rows, *SWEPT[name]))}
        if sweeps and rows_of(rows, group="sweep"):
            written.append(_growth(sweeps, rows, record, Path(f"{stem}-growth.png")))
    return written


def accuracy(record: Record, stem: Path) -> list[Path]:
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
        return [save(figure, record, Path(f"{stem}.png"))]


def _above_zero(error: float | None) -> float:
    """Map an error onto a log axis: exact is drawn at 1e-9, NaN is not drawn."""
    return float("nan") if error is None else max(error, 1e-9)


def _sweep(rows: list[Row], field: str, fixed: dict[str, int]) -> dict[str, list[Row]]:
    """Rows along one field, by contender, in order; empty without at least three points."""
    points: dict[str, list[Row]] = {}
    for row in sorted(rows_of(rows, **fixed), key=lambda row: row[field]):
        points.setdefault(row["contender"], []).append(row)
    longest = max((len(line) for line in points.values()), default=0)
    return points if longest >= 3 else {}


def _bars(
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


def _speedups(rows: list[Row], clock: str, what: str, record: Record, path: Path) -> Path:
    field = f"{clock}speedup_over_published"
    figure, axis = _bars(rows, field, lambda factor: f"{factor:.3g}x", skip="published", start=1.0)
    axis.set_xscale("log")
    axis.set_title(f"{what}: speed-up over the published expression")
    axis.set_xlabel("times as fast as published, eager (log scale)")
    axis.xaxis.set_major_formatter(lambda factor, _: f"{factor:g}x")
    axis.xaxis.set_minor_formatter("")
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.8), high * 1.5)
    return save(figure, record, path)


def _shares_of_copy(rows: list[Row], clock: str, what: str, record: Record, path: Path) -> Path:
    figure, axis = _bars(rows, f"{clock}of_copy", lambda share: f"{share:.1%}")
    axis.set_title(f"{what}: bandwidth against a copy of the features")
    axis.set_xlabel("share of a copy's bandwidth (100 % is the floor: every byte moved once)")
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.set_xlim(0, max(1.08, axis.get_xlim()[1] * 1.08))
    return save(figure, record, path)


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
