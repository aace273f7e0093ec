"""Pictures of the kernels' recorded results: speed-ups, bandwidth, growth, accuracy."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.harness import plots
from bench.harness.plots import FAINT, INK
from bench.harness.providers import PROVIDERS
from bench.harness.race import FRESH_COPY, FRESH_EXP
from bench.harness.records import Record, Row, rows_of

FLOOR_STYLES = {FRESH_EXP: ("one torch.exp", (0, (4, 2))), FRESH_COPY: ("one copy", (0, (1, 1.5)))}
SWEPT = {  # axis of a sweep: title, row field, values of the other two fields
    "images per class n": ("rows", {"classes": 10, "channels": 512}),
    "channels M": ("channels", {"classes": 10, "rows": 50}),
    "classes C": ("classes", {"rows": 10, "channels": 512}),
}
_UNITS = {1e-6: "1 us", 1e-5: "10 us", 1e-4: "100 us", 1e-3: "1 ms", 1e-2: "10 ms", 1e-1: "100 ms"}
_UNITS |= {1.0: "1 s", 10.0: "10 s"}


def kernels(record: Record, stem: Path) -> list[Path]:
    """Speed-up and copy-fraction bars for the shapes, and the sweeps that were run."""
    written = []
    with matplotlib.rc_context(plots.STYLE):
        for dtype in dict.fromkeys(row["dtype"] for row in record.rows):
            of_shapes = rows_of(record.rows, dtype=dtype, mode="value+gradient", group="shapes")
            if of_shapes:
                title = f"Value + gradient, {dtype}: bandwidth against a copy of the features"
                path = Path(f"{stem}-copy-{dtype}.png")
                written += [
                    _speedups(of_shapes, dtype, record, Path(f"{stem}-speedup-{dtype}.png")),
                    plots.shares_of_copy(of_shapes, "of_copy", title, record, path),
                ]
        rows = rows_of(record.rows, dtype="float32", mode="value+gradient")
        sweeps = {name: _sweep(rows, *SWEPT[name]) for name in SWEPT}
        sweeps = {name: points for name, points in sweeps.items() if len(points) >= 3}
        if sweeps:
            written.append(_growth(sweeps, rows, record, Path(f"{stem}-growth.png")))
    return written


def accuracy(record: Record, stem: Path) -> list[Path]:
    """Relative error of value and of gradient against the spread of the rows of a class."""
    with matplotlib.rc_context(plots.STYLE):
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
        return [plots.save(figure, record, Path(f"{stem}.png"))]


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


def _speedups(rows: list[Row], dtype: str, record: Record, path: Path) -> Path:
    figure, axis = plots.bars(
        rows, "speedup_over_published", lambda factor: f"{factor:.3g}x", skip="published", start=1.0
    )
    axis.set_xscale("log")
    axis.set_title(f"Value + gradient, {dtype}: speed-up over the published expression")
    axis.set_xlabel("times as fast as published, eager (log scale)")
    axis.xaxis.set_major_formatter(lambda factor, _: f"{factor:g}x")
    axis.xaxis.set_minor_formatter("")
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0.8), high * 1.5)
    return plots.save(figure, record, path)


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
    return plots.save(figure, record, path)
