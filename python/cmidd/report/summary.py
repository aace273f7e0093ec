"""What evaluations show, in sentences, for a reader of the terminal.

Accuracy on real test images (%), mean of 5 networks convnet:depth=2, seed 0:
  1 image per class: DSA 91.5, random real images 76.0
  5 images per class: DM + CMI 94.1, DM 93.4, random real images 92.5
  CMI in DM at 5 images per class: 0.7 points more than without, standard error 0.4
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cmidd.report.accuracy import RANDOM_REAL, Cell, Evaluation, Row, merged_rows
from cmidd.report.runs import RunSummary
from cmidd.synthetic import file_of


def summary(runs: Sequence[RunSummary], evaluations: Sequence[Evaluation]) -> list[str]:
    """Return lines about the accuracies, those of an architecture together.

    Args:
        runs: of the report; a set of another run is called by its file.
        evaluations: of the report.
    """
    rows = merged_rows(evaluations)
    own = {str(file_of(Path(run.name))): run for run in runs}
    classes = int(runs[0].synthetic.record["num_classes"])
    seeds = {evaluation.seed for evaluation in evaluations} - {None}
    judges = "".join(evaluation.judges for evaluation in evaluations[:1]).removeprefix("the ")
    lines = []
    for network in dict.fromkeys(network for row in rows for network in row.cells):
        cells = {row: row.cells[network] for row in rows if network in row.cells}
        head = _head(network, {cell.count for cell in cells.values()}, seeds)
        lines.append(f"Accuracy on {judges} (%), {head}:")
        alike = {row: (row.images, cell.soft_loss) for row, cell in cells.items()}
        for images, soft_loss in dict.fromkeys(alike.values()):
            found = {row: cells[row] for row in cells if alike[row] == (images, soft_loss)}
            what = f"{_size(images, classes)}{_by(soft_loss)}"
            lines.append(f"  {what}: {_best_first(found, own)}")
        lines += [f"  {text}" for text in _effects_of_cmi(cells, own, classes)]
    return lines


def _head(network: str, counts: set[int], seeds: set[int | None]) -> str:
    least, most = min(counts), max(counts)
    count = f"{most}" if least == most else f"{least} to {most}"
    networks = f"one network {network}" if most == 1 else f"mean of {count} networks {network}"
    seed = f", seed {seeds.copy().pop()}" if len(seeds) == 1 else ""
    return f"{networks}{seed}"


def _size(images: int, classes: int) -> str:
    per_class, rest = divmod(images, classes)
    if rest:
        return f"{images:,} images"
    return f"{per_class:,} {'image' if per_class == 1 else 'images'} per class"


def _by(soft_loss: str) -> str:
    """What networks learned of a teacher, if they did."""
    return soft_loss and f", a teacher's logits by {soft_loss}"


def _best_first(cells: Mapping[Row, Cell], own: Mapping[str, RunSummary]) -> str:
    made = {row: _maker(row, own) for row in cells}
    several = Counter(made.values())
    order = sorted(cells, key=lambda row: -cells[row].mean)
    names = {row: row.name if several[made[row]] > 1 else made[row] for row in cells}
    return ", ".join(f"{names[row]} {100 * cells[row].mean:.1f}" for row in order)


def _maker(row: Row, own: Mapping[str, RunSummary]) -> str:
    """What made a set: the method where it is of a run of the report."""
    if row.set in own:
        run = own[row.set]
        words = [run.method, "CMI" if run.has_cmi else "", "InfoNCE" if run.mim_weight else ""]
        return " + ".join(filter(None, words))
    return RANDOM_REAL if row.name.startswith(RANDOM_REAL) else row.name


def _effects_of_cmi(
    cells: Mapping[Row, Cell], own: Mapping[str, RunSummary], classes: int
) -> list[str]:
    """A sentence for every two runs that differ in CMI alone."""
    known = [(own[row.set], row.images, cell) for row, cell in cells.items() if row.set in own]
    return [
        f"CMI in {run.method} at {_size(images, classes)}{_by(cell.soft_loss)}: "
        f"{_compared(cell, other)}"
        for run, images, cell in known
        for without, _, other in known
        if run.has_cmi and not without.has_cmi and _but_for_cmi(run) == _but_for_cmi(without)
        if cell.soft_loss == other.soft_loss
    ]


def _but_for_cmi(run: RunSummary) -> dict[str, object]:
    """What it was told, but for CMI and for the options that decide nothing."""
    left_out = {"bank", "checkpoint_every", "data", "device", "keep_decoded", "report_every"}
    names = [name for name in run.config if not (name in left_out or name.startswith("cmi_"))]
    return {name: run.config[name] for name in names}


def _compared(cell: Cell, other: Cell) -> str:
    points = round(100 * (cell.mean - other.mean), 1)
    text = f"{abs(points)} points {'more' if points > 0 else 'fewer'} than without"
    if points == 0:
        text = "as many points as without"
    if min(cell.count, other.count) == 1:
        return f"{text}, of one network"
    error = math.sqrt(sum(each.std**2 / (each.count - 1) for each in (cell, other)))
    return f"{text}, standard error {100 * error:.1f}"
