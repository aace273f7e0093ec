"""The CMI and NCMI of images by every network of a bank, class by class.

Images come in batches and are forgotten, so a whole training set can be scored.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmidd.datasets import Dataset
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
    of_class: tuple[float, ...]  # mean over images and networks, of each class
    ncmi: tuple[float, ...]  # by each network

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return statistics.mean(self.of_network)

    @property
    def std(self) -> float:
        """Standard deviation over networks (of the population)."""
        return statistics.pstdev(self.of_network)

    def table(self, class_names: Sequence[str]) -> str:
        """For people."""
        width = max(len(name) for name in (*class_names, "all", "NCMI"))
        ncmi, apart = statistics.mean(self.ncmi), statistics.pstdev(self.ncmi)
        lines = [
            f"  {'all':<{width}}  {self.mean:.4e} +- {self.std:.1e} nats",
            f"  {'NCMI':<{width}}  {ncmi:.4e} +- {apart:.1e}",
        ]
        for name, value in zip(class_names, self.of_class, strict=True):
            lines.append(f"  {name:<{width}}  {value:.4e}")
        return "\n".join(lines)


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor, layer: str = "features") -> Tensor:
    """What a network makes of images, batch by batch, `(N, M)`."""
    batches = torch.split(images, BATCH)
    return torch.cat([embed(network, batch, layer, "float32") for batch in batches])


def score(bank: Bank, images: Tensor, labels: Tensor, layer: str = "features") -> Score:
    """CMI of normalised images that are in memory, on the device of the bank."""
    batches = list(zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True))
    return score_batches(bank, lambda: batches, layer)


def train_batches(dataset: Dataset, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All training images of a dataset."""
    images, labels = dataset.train.images, dataset.train.labels
    for some, of in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
        yield dataset.to_input(some.to(device)), of.to(device)


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
    of_network, of_class, ncmi = [], [], []
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
        of_class.append(metric.of_classes())
        ncmi.append(float(metric.compute()))
    by_class = torch.stack(of_class).mean(dim=0)
    return Score(tuple(of_network), tuple(by_class.tolist()), tuple(ncmi))
