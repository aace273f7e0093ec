"""The CMI of a set of images by every network of a bank, class by class."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cmidd.pretrained.bank import Bank
from cmikernels import ClassIndex, fused_cmi
from cmikernels.embedding import embed

_BATCH = 256


@dataclass(frozen=True)
class Score:
    """CMI of a set."""

    of_network: tuple[float, ...]  # mean over images, by each network
    of_class: tuple[float, ...]  # mean over images and networks, of each class

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
        width = max(len(name) for name in (*class_names, "all"))
        lines = [f"  {'all':<{width}}  {self.mean:.4e} +- {self.std:.1e} nats"]
        for name, value in zip(class_names, self.of_class, strict=True):
            lines.append(f"  {name:<{width}}  {value:.4e}")
        return "\n".join(lines)


@torch.no_grad()
def features_of(network: nn.Module, images: Tensor, layer: str = "features") -> Tensor:
    """What a network makes of images, batch by batch, `(N, M)`."""
    batches = torch.split(images, _BATCH)
    return torch.cat([embed(network, batch, layer, "float32") for batch in batches])


@torch.no_grad()
def score(bank: Bank, images: Tensor, labels: Tensor, layer: str = "features") -> Score:
    """CMI of normalised images; it takes the memory of their features and one batch of images."""
    index = ClassIndex(labels, bank.record["num_classes"])
    of_class = []
    for network in bank:
        features = features_of(network, images, layer)
        of_class.append(fused_cmi(features, index, reduction="class").double())
    by_class = torch.stack(of_class)  # (networks, C)
    share = index.counts().double() / index.num_rows
    return Score(tuple((by_class @ share).tolist()), tuple(by_class.mean(dim=0).tolist()))
