"""The accuracy table: rows are what networks were trained on, columns the networks.

It reads the JSON that `cmidd evaluate` writes:

    {"results": [{"set": "runs/dm/result.safetensors" | "random real images, 10 per class" |
                         "all real images",
                  "images": N, "bytes": {"images": ..., "labels": ...}, "taught_by": {...},
                  "evaluations": [{"network": "convnet", "accuracies": [...], "mean": ..., "std":
                                   ..., "recipe": {...}}]}],
     "dataset": ..., "held_out": null or a share, "seed": N, "command": "...", "versions": {...},
     "ddranking": {"scores": [...]}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cmidd.options.recipe import Recipe
from cmidd.report.page import Html, digits, element, join, paragraph, table
from cmidd.report.robustness import Scores, robustness_table
from cmidd.storage.output import in_words
from cmidd.storage.tensor_file import FileError

_MARKED = (
    "Marked as best: among distilled sets of equally many images the one whose mean is above that "
    "of every other by more than √(a² + b²), where a and b are the two standard deviations; none "
    "where n is 1."
)
RANDOM_REAL = "random real images"
"""How the names of such sets begin, as those of all real images do with the following."""
_ALL_REAL = "all real images"


@dataclass(frozen=True)
class Cell:
    """What networks of one architecture reached after training on one set."""

    mean: float
    std: float
    count: int
    recipe: str
    soft_loss: str = ""  # in words, where they learned a teacher's logits


@dataclass(eq=False)
class Row:
    """One set and its accuracies by network."""

    name: str
    images: int
    cells: dict[str, Cell] = field(default_factory=dict)
    learned: str = ""  # the set, where the name says too what taught the networks
    nbytes: tuple[int, int] | None = None  # of images as uint8 and of labels, where they are known

    @property
    def set(self) -> str:
        """The set that networks learned from."""
        return self.learned or self.name


@dataclass(frozen=True)
class Evaluation:
    """One file."""

    name: str
    rows: list[Row]
    dataset: str
    command: str | None
    seed: int | None
    versions: dict[str, Any]
    held_out: float | None = None
    scores: tuple[Scores, ...] = ()

    @property
    def judges(self) -> str:
        """The images that accuracy is measured on."""
        if self.held_out is None:
            return "the real test images"
        return f"{self.held_out:.0%} of the real training images, held out"


def read_evaluation(path: Path) -> Evaluation:
    """Read and check a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"evaluations: expected a file that cmidd evaluate wrote, found none at {path}"
        )
    try:
        record = json.loads(path.read_text())
        rows = []
        for result in record["results"]:
            row = _row_of(result)
            for found in result["evaluations"]:
                row.cells[str(found["network"])] = Cell(
                    float(found["mean"]),
                    float(found["std"]),
                    len(found["accuracies"]),
                    ", ".join(f"{key} {digits(value)}" for key, value in found["recipe"].items()),
                    _soft_loss_of(found["recipe"]),
                )
            rows.append(row)
        return Evaluation(
            str(path),
            rows,
            str(record["dataset"]),
            record.get("command"),
            record.get("seed"),
            dict(record.get("versions", {})),
            None if record.get("held_out") is None else float(record["held_out"]),
            tuple(map(Scores.of_record, record.get("ddranking", {}).get("scores", ()))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{path}: expected the JSON that cmidd evaluate writes ({type(error).__name__}: "
            f"{error})"
        ) from None


def _row_of(result: Mapping[str, Any]) -> Row:
    name, taught, nbytes = str(result["set"]), result.get("taught_by"), result.get("bytes")
    row = Row(name, int(result["images"]))
    if taught is not None:
        row.learned = name.removesuffix(f", {taught['about']}")
    if nbytes is not None:
        row.nbytes = int(nbytes["images"]), int(nbytes["labels"])
    return row


def _soft_loss_of(recipe: Mapping[str, Any]) -> str:
    return Recipe.of_record(recipe).loss_in_words() if "soft_loss" in recipe else ""


def accuracy_table(evaluations: Sequence[Evaluation]) -> Html:
    """All results of all files, distilled sets marked where they are best beyond deviation.

    The scores of DD-Ranking follow, where there are some.
    """
    rows = merged_rows(evaluations)
    networks = list(dict.fromkeys(network for row in rows for network in row.cells))
    rivals = [[_rivals(row, network, rows) for network in networks] for row in rows]
    lines = [
        [row.name, f"{row.images:,}", *map(_cell, map(row.cells.get, networks), of_row)]
        for row, of_row in zip(rows, rivals, strict=True)
    ]
    recipes: dict[str, dict[str, None]] = {}  # and the rows that each is of
    for row in rows:
        for cell in row.cells.values():
            recipes.setdefault(cell.recipe, {})[row.name] = None
    marked = f" {_MARKED}" if any(found for of_row in rivals for found in of_row) else ""
    return join(
        [
            paragraph(
                f"Accuracy on {evaluations[0].judges}, in %: mean ± standard deviation of n "
                f"networks trained on the set from fresh weights.{marked}"
            ),
            table(["trained on", "images", *networks], lines),
            *(
                paragraph(
                    f"Recipe of {', '.join(names)}: " if len(recipes) > 1 else "Recipe: ",
                    recipe,
                    class_="faint",
                )
                for recipe, names in recipes.items()
            ),
            *(paragraph(text) for text in _sizes(rows)),
            robustness_table([each for evaluation in evaluations for each in evaluation.scores]),
        ]
    )


def _sizes(rows: Sequence[Row]) -> list[str]:
    """What sets and labels take, in a sentence, where a teacher made some of the labels."""
    if not any(row.learned for row in rows):
        return []
    sizes = [
        f"{row.name} {in_words(row.nbytes[0])} and {in_words(row.nbytes[1])}"
        for row in rows
        if row.nbytes is not None
    ]
    return [f"Bytes of images, as uint8, and of labels, or of the teacher: {'; '.join(sizes)}."]


def _rivals(row: Row, network: str, rows: Sequence[Row]) -> list[Cell]:
    """Of the other distilled sets as large as this one, if it is distilled, evaluated alike."""
    return [
        other.cells[network]
        for other in rows
        if other is not row
        and other.images == row.images
        and not any(_is_all(each) or _is_random(each) for each in (row, other))
        and network in row.cells.keys() & other.cells.keys()
        and other.cells[network].soft_loss == row.cells[network].soft_loss
    ]


def _is_best(cell: Cell, rivals: Sequence[Cell]) -> bool:
    """Whether it is better than every rival, as `_MARKED` says."""
    return bool(rivals) and all(
        min(cell.count, rival.count) > 1
        and cell.mean - rival.mean > math.hypot(cell.std, rival.std)
        for rival in rivals
    )


def merged_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """One row for each set; where two files disagree about one, both stay.

    Sets of equally many images stand together, the smallest first, distilled before random ones.
    """
    merged: list[Row] = []
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        for known in merged:
            if (known.name, known.images) == (row.name, row.images) and all(
                known.cells.get(network, cell) == cell for network, cell in row.cells.items()
            ):
                known.cells.update(row.cells)
                break
        else:
            merged.append(replace(row, cells=dict(row.cells)))
    return sorted(merged, key=lambda row: (_is_all(row), row.images, _is_random(row)))


def _is_all(row: Row) -> bool:
    return row.name.startswith(_ALL_REAL)


def _is_random(row: Row) -> bool:
    return row.name.startswith(RANDOM_REAL)


def _cell(cell: Cell | None, rivals: Sequence[Cell]) -> Html:
    if cell is None:
        return element("td", "—")
    is_best = _is_best(cell, rivals)
    spread = f" ± {100 * cell.std:.1f}" if cell.count > 1 else ""
    number = f"{100 * cell.mean:.1f}{spread} "
    note = element("small", f"n = {cell.count}{', best' if is_best else ''}")
    if is_best:
        return element("td", number, note, class_="best")
    return element("td", number, note)
