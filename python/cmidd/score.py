"""The CMI and NCMI of images by every network of a bank, class by class.

Images come in batches and are forgotten, so a whole training set can be scored.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images, one_after_another
from cmidd.pretrained.bank import Bank
from cmikernels import EmpiricalCMI
from cmikernels.embedding import embed

BATCH = 256

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images and their labels."""


@dataclass(frozen=True)
class Score:
    """CMI of a set, and NCMI: over the mean cross-entropy between images of different classes."""

    of_network: tuple[float, ...]  # mean over images, by each network
    of_classes: tuple[tuple[float, ...], ...]  # mean over images of each class, by each network
    ncmi: tuple[float, ...]  # by each network

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return statistics.mean(self.of_network)

    @property
    def std(self) -> float:
        """Standard deviation over networks (of the population)."""
        return statistics.pstdev(self.of_network)

    @property
    def of_class(self) -> tuple[float, ...]:
        """Mean over images and networks, of each class."""
        return tuple(map(statistics.mean, zip(*self.of_classes, strict=True)))

    @property
    def std_of_class(self) -> tuple[float, ...]:
        """Standard deviation over networks, of each class."""
        return tuple(map(statistics.pstdev, zip(*self.of_classes, strict=True)))

    def table(self, class_names: Sequence[str]) -> str:
        """For people."""
        width = max(len(name) for name in (*class_names, "all", "NCMI"))
        ncmi, apart = statistics.mean(self.ncmi), statistics.pstdev(self.ncmi)
        lines = [
            f"  {'all':<{width}}  {self.mean:.4e} +- {self.std:.1e} nats",
            f"  {'NCMI':<{width}}  {ncmi:.4e} +- {apart:.1e}",
        ]
        classes = zip(class_names, self.of_class, self.std_of_class, strict=True)
        for name, value, spread in classes:
            lines.append(f"  {name:<{width}}  {value:.4e} +- {spread:.1e}")
        return "\n".join(lines)

    def as_record(self) -> dict[str, Any]:
        """For JSON: what each network finds, and mean and standard deviation over networks."""
        networks = [
            {"cmi": cmi, "ncmi": ncmi, "of_classes": list(of_classes)}
            for cmi, ncmi, of_classes in zip(
                self.of_network, self.ncmi, self.of_classes, strict=True
            )
        ]
        return {
            "cmi": {"mean": self.mean, "std": self.std},
            "ncmi": {"mean": statistics.mean(self.ncmi), "std": statistics.pstdev(self.ncmi)},
            "of_classes": [
                {"mean": mean, "std": std}
                for mean, std in zip(self.of_class, self.std_of_class, strict=True)
            ],
            "networks": networks,
        }


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor, layer: str = "features") -> Tensor:
    """What a network makes of images, batch by batch, `(N, M)`."""
    batches = torch.split(images, BATCH)
    return torch.cat([embed(network, batch, layer, "float32") for batch in batches])


def score(bank: Bank, images: Images, labels: Tensor, layer: str = "features") -> Score:
    """CMI of normalised images, on the device of the bank."""
    return score_batches(bank, lambda: batches_of(images, labels), layer)


def batches_of(images: Images, labels: Tensor) -> Batches:
    """Normalised images, batch by batch, with their labels."""
    parts: Iterable[Tensor]
    if isinstance(images, Tensor):
        parts = torch.split(images, BATCH)
    else:
        parts = one_after_another(images, torch.split(torch.arange(len(images)), BATCH))
    return zip(parts, torch.split(labels, BATCH), strict=True)


def train_batches(dataset: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All training images of a dataset."""
    return dataset.batches(dataset.train, device, BATCH)


@torch.no_grad()
def score_batches(
    bank: Bank,
    batches: Callable[[], Batches],
    layer: str = "features",
    done: Callable[[], object] = lambda: None,
) -> Score:
    """CMI of whatever comes in batches; it takes the memory of one of them.

    Args:
        bank: whose networks judge.
        batches: gives them anew for each network, on the device of the bank.
        layer: whose output is the feature.
        done: called after each batch of each network.
    """
    of_network, of_classes, ncmi = [], [], []
    for network in bank:
        metric: EmpiricalCMI | None = None
        for images, labels in batches():
            features = embed(network, images, layer, "float32")
            if metric is None:
                sizes = bank.record["num_classes"], features.shape[1]
                metric = EmpiricalCMI(*sizes, normalize="all").to(features.device)
            metric.update(features, labels)
            done()
        if metric is None:
            raise ValueError("batches: expected images to score, got none")
        share = metric.counts().double() / metric.counts().sum()
        of_network.append(float(metric.of_classes() @ share))
        of_classes.append(tuple(metric.of_classes().tolist()))
        ncmi.append(float(metric.compute()))
    return Score(tuple(of_network), tuple(of_classes), tuple(ncmi))
