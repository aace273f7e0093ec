"""The accuracy table: rows are what networks were trained on, columns the networks.

It reads the JSON that `cmidd evaluate` writes:

    {"results": [{"set": "runs/dm/result.safetensors" | "random real images, 10 per class" |
                         "all real images",
                  "images": N,
                  "evaluations": [{"network": "convnet", "accuracies": [...], "mean": ..., "std":
                                   ..., "recipe": {...}}]}],
     "dataset": ..., "command": "...", "versions": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmidd.report.page import Html, element, join, paragraph, table
from cmidd.storage.tensor_file import FileError

_REAL = ("random real images", "all real images")  # how sets begin that were not distilled


@dataclass(frozen=True)
class Cell:
    """What networks of one architecture reached after training on one set."""

    mean: float
    std: float
    count: int
    recipe: str


@dataclass
class Row:
    """One set and its accuracies by network."""

    name: str
    images: int
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One file."""

    name: str
    rows: list[Row]
    dataset: str
    command: str | None
    versions: dict[str, Any]


def read_evaluation(path: Path) -> Evaluation:
    """Read and check a file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"evaluations: {path} is not there; name a file that cmidd evaluate wrote"
        )
    try:
        record = json.loads(path.read_text())
        rows = []
        for result in record["results"]:
            row = Row(str(result["set"]), int(result["images"]))
            for found in result["evaluations"]:
                row.cells[str(found["network"])] = Cell(
                    float(found["mean"]),
                    float(found["std"]),
                    len(found["accuracies"]),
                    ", ".join(f"{key} {value}" for key, value in found["recipe"].items()),
                )
            rows.append(row)
        return Evaluation(
            str(path),
            rows,
            str(record["dataset"]),
            record.get("command"),
            dict(record.get("versions", {})),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{path}: expected the JSON that cmidd evaluate writes ({type(error).__name__}: "
            f"{error})"
        ) from None


def accuracy_table(evaluations: Sequence[Evaluation]) -> Html:
    """All results of all files, the best distilled set of each column marked."""
    rows = _merged([row for evaluation in evaluations for row in evaluation.rows])
    networks = list(dict.fromkeys(network for row in rows for network in row.cells))
    distilled = [row for row in rows if _order(row) == 0]
    best = {
        network: max(found)
        for network in networks
        if len(found := [row.cells[network].mean for row in distilled if network in row.cells]) > 1
    }
    lines = [
        [
            row.name,
            f"{row.images:,}",
            *(
                _cell(row.cells.get(network), best.get(network) if row in distilled else None)
                for network in networks
            ),
        ]
        for row in rows
    ]
    recipes: dict[str, dict[str, None]] = {}  # and the rows that each is of
    for row in rows:
        for cell in row.cells.values():
            recipes.setdefault(cell.recipe, {})[row.name] = None
    marked = " Marked: the best distilled set of a column." if best else ""
    return join(
        [
            paragraph(
                "Accuracy on the real test images, in %: mean ± standard deviation of n networks "
                f"trained on the set from fresh weights.{marked}"
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
        ]
    )


def _merged(rows: list[Row]) -> list[Row]:
    """One row for each set; where two files disagree about one, both stay. Distilled sets first."""
    merged: list[Row] = []
    for row in rows:
        for known in merged:
            if (known.name, known.images) == (row.name, row.images) and all(
                known.cells.get(network, cell) == cell for network, cell in row.cells.items()
            ):
                known.cells.update(row.cells)
                break
        else:
            merged.append(Row(row.name, row.images, dict(row.cells)))
    return sorted(merged, key=_order)


def _order(row: Row) -> int:
    """0 for distilled sets, then random real images, then all."""
    return next((k for k, real in enumerate(_REAL, 1) if row.name.startswith(real)), 0)


def _cell(cell: Cell | None, best: float | None) -> Html:
    if cell is None:
        return element("td", "—")
    spread = f" ± {100 * cell.std:.1f}" if cell.count > 1 else ""
    is_best = cell.mean == best
    number = f"{100 * cell.mean:.1f}{spread} "
    note = element("small", f"n = {cell.count}{', best' if is_best else ''}")
    if is_best:
        return element("td", number, note, class_="best")
    return element("td", number, note)
