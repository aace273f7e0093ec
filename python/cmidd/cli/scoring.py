"""`cmidd score`: CMI and NCMI of sets by the networks of a bank."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cmidd.cli.data import load_for, load_sets
from cmidd.cli.flags import command_line
from cmidd.datasets import Dataset
from cmidd.device import usable_device
from cmidd.options.commands import SetDataOptions
from cmidd.options.evaluation import ScoreOptions
from cmidd.pretrained.bank import Bank
from cmidd.progress import progress
from cmidd.score import BATCH, Batches, Score, batches_of, score_batches, train_batches
from cmidd.storage.output import check_writable, write_bytes, write_text
from cmidd.storage.run_folder import versions
from cmidd.synthetic import SyntheticSet


class _Scored(NamedTuple):
    """Images that are scored, in batches that can be had again."""

    name: str
    images: int
    batches: Callable[[], Batches]


def run_score(data: SetDataOptions, options: ScoreOptions) -> None:
    """Print the CMI and NCMI of sets by every network of a bank, and keep and draw them."""
    dataset, device = load_for(options.sets, data), usable_device(data.device)
    bank = Bank.load(options.bank, device)
    sets = load_sets(dataset, options.sets, options.random_real, options.seed)
    for each in sets.values():
        each.whiten(dataset).check_made_for(bank.record, f"bank: {options.bank}")
    if options.all_real:
        dataset.check_made_for(bank.record, f"bank: {options.bank}")
    files = options.files()
    for name, path in files.items():
        check_writable(path.parent, name)
    scores, sizes = {}, {}
    for name, images, batches in _scored(dataset, sets, device, all_real=options.all_real):
        steps = len(bank) * -(-images // BATCH)
        with progress(total=steps, unit="batch", desc="scoring", leave=False) as bar:
            found = score_batches(bank, batches, options.layer, bar.update)
        scores[name], sizes[name] = found, images
        print(f"{name}\n{found.table(dataset.class_names)}", flush=True)
    if "out" in files:
        about = {
            "dataset": dataset.name,
            "class_names": list(dataset.class_names),
            "bank": str(options.bank),
            "layer": options.layer,
            "seed": options.seed,
            "command": command_line("score", (data, options)),
            "versions": versions(),
        }
        _write(files["out"], about, scores, sizes)
        print(f"the scores: {files['out']}")
    if "plot" in files:
        _draw(files["plot"], scores, dataset)
        print(f"the picture: {files['plot']}")


def _scored(
    dataset: Dataset, sets: dict[str, SyntheticSet], device: torch.device, *, all_real: bool
) -> Iterator[_Scored]:
    for name, each in sets.items():
        seen = each.seen()
        images, labels = seen.source.to(device), seen.labels.to(device)
        yield _Scored(name, len(labels), partial(batches_of, images, labels))
    if all_real:
        count = len(dataset.train)
        yield _Scored(f"all {count} real images", count, partial(train_batches, dataset, device))


def _write(
    path: Path, about: dict[str, Any], scores: dict[str, Score], sizes: dict[str, int]
) -> None:
    entries = [
        {"set": name, "images": sizes[name], **found.as_record()} for name, found in scores.items()
    ]
    write_text(path, json.dumps({**about, "scores": entries}, indent=1) + "\n")


def _draw(path: Path, scores: dict[str, Score], dataset: Dataset) -> None:
    from cmidd.report.class_dots import Dots, class_dots

    dots = [
        Dots(name, (found.mean, *found.of_class), (found.std, *found.std_of_class))
        for name, found in scores.items()
    ]
    title = "CMI (nats), mean and standard deviation over networks"
    write_bytes(path, class_dots(dots, ("all", *dataset.class_names), title))
