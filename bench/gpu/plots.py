"""Pictures of a GPU's recorded results: time against size, and share of a copy's bandwidth."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.harness import plots
from bench.harness.providers import PROVIDERS
from bench.harness.race import COPY
from bench.harness.records import Record, Row, feature_bytes, rows_of
from bench.harness.tables import bytes_text, seconds_text


def kernels(record: Record, stem: Path) -> list[Path]:
    """Both pictures for every dtype measured at three shapes or more, replayed value+gradient."""
    written = []
    rows = rows_of(record.rows, group="shapes", mode="value+gradient")
    rows = [row for row in rows if "replay_seconds" in row]
    with matplotlib.rc_context(plots.STYLE):
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            mine = rows_of(rows, dtype=dtype)
            if len({row["shape"] for row in mine}) >= 3:
                title = f"Value + gradient, {dtype}: bandwidth against a copy, replayed"
                served = [row for row in mine if row["contender"] in ("compile", *plots.OURS)]
                path = Path(f"{stem}-copy-{dtype}.png")
                written += [
                    _time_over_size(mine, dtype, record, Path(f"{stem}-size-{dtype}.png")),
                    plots.shares_of_copy(served, "replay_of_copy", title, record, path),
                ]
    return written


def _time_over_size(rows: list[Row], dtype: str, record: Record, path: Path) -> Path:
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    for name in [*PROVIDERS, COPY]:
        points = sorted(
            (feature_bytes(row), row["replay_seconds"]) for row in rows_of(rows, contender=name)
        )
        if not points:
            continue
        sizes, seconds = zip(*points, strict=True)
        if name == COPY:
            axis.plot(sizes, seconds, lw=1.3, ls=(0, (1, 1.5)), color=plots.INK, label="one copy")
        else:
            provider = PROVIDERS[name]
            color, label = provider.color, provider.label
            axis.plot(sizes, seconds, marker="o", ms=6, lw=0, color=color, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title(f"Value + gradient, {dtype}: time over size, replayed", pad=10)
    axis.set_xlabel("size of the features, N M s (log scale)")
    axis.set_ylabel("time of a call (log scale)")
    axis.xaxis.set_major_formatter(lambda size, _: bytes_text(size))
    axis.yaxis.set_major_formatter(lambda seconds, _: seconds_text(seconds))
    axis.minorticks_off()
    axis.grid(True)
    return plots.save(figure, record, path)
