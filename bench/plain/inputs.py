"""What tests and benchmarks put in the place of real data and of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from cmidd.datasets import Dataset, ImageSet
from cmidd.networks import Network, build_network, freeze, initialize
from cmidd.pretrained.bank import KIND as BANK
from cmidd.pretrained.experts import KIND
from cmidd.seeds import generator
from cmidd.storage.tensor_file import write_tensors

_BANK_SIZE = 3


def random_dataset(per_class: Sequence[int], pixels: int, *, mirror: bool = True) -> Dataset:
    """Noise in the place of real images: so many of each class, 3 x pixels x pixels."""
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    noise = torch.randint(256, (len(labels), 3, pixels, pixels), generator=generator("noise"))
    images = ImageSet.from_arrays(noise.to(torch.uint8), labels, len(per_class))
    names = tuple(map(str, range(len(per_class))))
    return Dataset("noise", images, images, names, (0.5,) * 3, (0.3,) * 3, mirror)


def untrained_bank(spec: str, pixels: int, classes: int, count: int = _BANK_SIZE) -> list[Network]:
    """Networks as a bank has them, but for their training; in float32 on the CPU."""
    networks = []
    for number in range(count):
        network = build_network(spec, 3, pixels, classes)
        initialize(network, generator("bank", number))
        networks.append(freeze(network))
    return networks


def save_each(networks: Sequence[nn.Module], folder: Path) -> list[Path]:
    """A file for each network, as the published loop reads them."""
    files = [folder / f"{number}.pt" for number in range(len(networks))]
    for network, file in zip(networks, files, strict=True):
        torch.save(network.state_dict(), file)
    return files


def write_bank(path: Path, dataset: Dataset, spec: str, count: int = _BANK_SIZE) -> None:
    """A bank of untrained networks, which take as long; their seed gives other first weights."""
    _, pixels, _ = dataset.shape
    bank = untrained_bank(spec, pixels, dataset.num_classes, count)
    states = [each.state_dict() for each in bank]
    content = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    content["accuracy"] = torch.zeros(len(states))
    content["trained"] = torch.ones(len(states), dtype=torch.uint8)
    record = {"network": spec, "networks": len(states), "seed": 0}
    write_tensors(path, BANK, content, {**dataset.describe(), **record})


def write_expert(path: Path, dataset: Dataset, network: str) -> None:
    """An expert of one epoch whose weights are random, which takes as long as another."""
    channels, size, _ = dataset.shape
    weights = []  # before and after the epoch
    for epoch in range(2):
        expert = build_network(network, channels, size, dataset.num_classes)
        initialize(expert, generator("expert", epoch))
        weights.append(torch.cat([p.detach().flatten() for p in expert.parameters()]))
    content = {
        "parameters": torch.stack(weights)[None],
        "accuracy": torch.zeros(1),
        "trained": torch.ones(1, dtype=torch.uint8),
    }
    record = {"network": network, "experts": 1, "epochs": 1, "lr": 0.01}
    write_tensors(path, KIND, content, {**dataset.describe(), **record})
