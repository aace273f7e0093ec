"""What a report is made of: folders of runs, a bank and evaluations, written without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmidd.datasets import Dataset, load_dataset
from cmidd.evaluate import Accuracy
from cmidd.networks import build_network, initialize
from cmidd.options.recipe import PUBLISHED_RECIPE
from cmidd.pretrained.bank import KIND as BANK
from cmidd.report import write_report
from cmidd.seeds import generator
from cmidd.storage.run_folder import RunFolder
from cmidd.storage.tensor_file import write_tensors
from cmidd.synthetic import SyntheticSet

CLASSES, SHAPE = 3, (1, 8, 8)
Results = Mapping[str, Mapping[str, Sequence[float]]]  # accuracies by a set, then by a network


class Page(HTMLParser):
    """The elements of a page, their attributes, and its pieces of text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All of it, without markup."""
        return " ".join(self.texts)

    def of(self, name: str) -> list[dict[str, str]]:
        """Attributes of the elements of a name."""
        return [
            {key: value or "" for key, value in attributes.items()}
            for tag, attributes in self.elements
            if tag == name
        ]

    def alts(self, start: str = "") -> list[str]:
        """The pictures in words, those that start so."""
        return [image["alt"] for image in self.of("img") if image["alt"].startswith(start)]

    def section(self, title: str) -> str:
        """The text under a heading."""
        (part,) = (p for p in self.source.split("<section>") if f"<h2>{title}</h2>" in p)
        return Page(part).text


def make_dataset(folder: Path) -> Dataset:
    """Random images of three classes, in a file that `load_dataset` reads by this one's name."""
    draws = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 12), ("test", 30)):
        arrays[f"{split}_images"] = draws.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % CLASSES
    np.savez(folder / "real.npz", **arrays)
    return load_dataset(f"arrays:{folder / 'real.npz'}")


def make_run(
    path: Path,
    dataset: Dataset,
    *,
    finished: bool = True,
    ipc: int = 2,
    weight: float = 100.0,
    class_names: Sequence[str] | None = None,
    record: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    scale: float = 1.0,
) -> Path:
    """The files of a run, with three lines of log and a checkpoint."""
    names = list(dataset.class_names if class_names is None else class_names)
    settings = {"method": "dm", "dataset": dataset.name, "data": "data", "size": None, "ipc": ipc}
    folder = RunFolder(path, {**settings, **(config or {})}, resume=False)
    folder.load_checkpoint()
    labels = torch.arange(len(names)).repeat_interleave(ipc)
    images = scale * torch.randn(len(labels), *SHAPE, generator=generator("report images"))
    with folder.logging(0):
        for iteration in range(3):
            numbers = {"loss": 3.0 - iteration}
            if weight:
                cmi = 0.5 / (1 + iteration)
                numbers |= {"cmi": cmi, "weighted_cmi": weight * cmi}
            folder.log(10 * iteration, numbers)
        folder.save_checkpoint(1234, {"images": images}, record)
    if finished:
        about = {**dataset.describe(), "num_classes": len(names), "class_names": names}
        about |= {"method": "dm", "cmi_weight": weight, "command": "cmidd distill dm --seed 7"}
        about |= {"versions": {"torch": "9.9.9"}, **(record or {})}
        SyntheticSet(images, labels, about).save(folder.result)
    return path


def make_bank(path: Path, dataset: Dataset, networks: int = 2, command: str | None = None) -> Path:
    """Networks as they are before training."""
    spec = "convnet:depth=1,width=4"
    states = []
    for number in range(networks):
        network = build_network(spec, *SHAPE[:2], dataset.num_classes)
        initialize(network, generator("report bank", number))
        states.append(network.state_dict())
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    stacked["trained"] = torch.ones(networks, dtype=torch.uint8)
    stacked["accuracy"] = torch.ones(networks)
    record = {**dataset.describe(), "network": spec, "networks": networks}
    record |= {} if command is None else {"command": command}
    write_tensors(path, BANK, stacked, record)
    return path


def make_evaluation(
    path: Path, dataset: str, results: Results, sizes: Mapping[str, int] | None = None
) -> Path:
    """The file that `cmidd evaluate` would write, of sets of six images but for `sizes`."""
    record = {
        "results": [
            {
                "set": name,
                "images": (sizes or {}).get(name, 6),
                "evaluations": [
                    Accuracy(network, tuple(accuracies), PUBLISHED_RECIPE).as_record()
                    for network, accuracies in of_networks.items()
                ],
            }
            for name, of_networks in results.items()
        ],
        "dataset": dataset,
        "command": "cmidd evaluate --seed 3",
        "versions": {"torch": "8.8.8"},
    }
    path.write_text(json.dumps(record))
    return path


def taught(result: dict[str, Any], about: str, soft_loss: str = "kl") -> dict[str, Any]:
    """A result of `make_evaluation` as it is where networks learned a teacher's logits."""
    changes = {"soft_loss": soft_loss, "temperature": 20.0}
    return {
        **result,
        "set": f"{result['set']}, {about}",
        "taught_by": {"about": about, "labels": 7},
        "bytes": {"images": 6000, "labels": 40_000},
        "evaluations": [
            {**each, "recipe": {**each["recipe"], **changes}} for each in result["evaluations"]
        ],
    }


def report(out: Path, *runs: Path, **more: Any) -> Page:
    """The page that `write_report` writes into a folder."""
    write_report(runs, out / "report.html", device=torch.device("cpu"), **more)
    return Page((out / "report.html").read_text())
