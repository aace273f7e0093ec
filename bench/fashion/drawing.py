"""Pictures: accuracy over iterations, and the distilled images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from bench.fashion.cases import DATASET, SWEEPS, Case
from bench.fashion.report import mean_and_deviation, stages_of, title_of
from bench.harness.pictures import STYLE, save
from bench.harness.records import Record
from cmidd.datasets import load_dataset
from cmidd.first_images import first_images
from cmidd.synthetic import SyntheticSet


def pictures(record: Record, stem: Path) -> list[Path]:
    """Accuracy over iterations, a line a method; none of a sweep."""
    lines = stages_of(record.rows)
    if record.settings["rows"] in SWEEPS or not lines:
        return []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axis = figure.subplots()
        for name, stages in lines.items():
            means, spreads = zip(*map(mean_and_deviation, stages.values()), strict=True)
            axis.errorbar(
                list(stages), means, spreads, marker="o", ms=4, lw=1.5, capsize=2, label=name
            )
        ticks = sorted({stage for stages in lines.values() for stage in stages})
        axis.set(xscale="log", title="accuracy on the real test images, %", xlabel="iterations")
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(True)
        return [save(figure, record, Path(f"{stem}.png"))]


def draw_images(cases: Sequence[Case], folder: Path, path: Path) -> Path:
    """A real image of each class, and below it the first one that each case distilled of it."""
    dataset = load_dataset(DATASET)
    rows = {"a real image": dataset.to_pixels(first_images(dataset, 1, "real", 0)[0])}
    for case in cases:
        done = [k for k in case.stages if (folder / case.name / f"{k}.safetensors").exists()]
        if done:
            made = SyntheticSet.load(folder / case.name / f"{done[-1]}.safetensors")
            rows[title_of(case)] = made.pixels()[:: case.ipc]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(dataset.num_classes, 0.35 + len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), dataset.num_classes, squeeze=False)
        for of_row, (name, pixels) in zip(axes, rows.items(), strict=True):
            for axis, image in zip(of_row, pixels, strict=True):
                axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            of_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, name in zip(axes[0], dataset.class_names, strict=True):
            axis.set_title(name, loc="center", fontsize=9, fontweight="normal")
        figure.savefig(path, dpi=100)
    return path
