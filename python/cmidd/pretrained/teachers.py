"""Teachers: trained networks whose logits and statistics others learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from cmidd.datasets import Dataset
from cmidd.datasets.known import KNOWN
from cmidd.networks import freeze
from cmidd.pretrained.bank import Bank
from cmidd.pretrained.state_dicts import network_of_file
from cmidd.storage.tensor_file import record_of


def load_teachers(
    paths: Sequence[Path],
    dataset: Dataset,
    device: torch.device,
    *,
    option: str = "teacher",
    say: Callable[[str], None] = tqdm.write,
) -> list[nn.Module]:
    """All networks of the files that an option names, frozen and in eval mode.

    A file is a bank, or a state dict as `state_dicts.py` reads it. The networks take images as
    `dataset.to_input` makes them, and give logits of the dataset's classes.
    """
    teachers: list[nn.Module] = []
    for path in paths:
        if record_of(path) or not path.is_file():
            teachers += Bank.load_for(dataset, path, option, device)
        else:
            teachers.append(_trained_elsewhere(path, dataset, option, say).to(device))
    return teachers


def _trained_elsewhere(
    path: Path, dataset: Dataset, option: str, say: Callable[[str], None]
) -> nn.Module:
    """The network of a state dict, which says nothing of the images that it was trained on."""
    dataset.check_unseen({}, f"{option}: {path}")
    if dataset.whitening is not None:
        raise ValueError(
            f"{option}: expected images without whitening (zca) for a network that was trained "
            f"elsewhere, {path}"
        )
    network = network_of_file(path, dataset.shape, dataset.num_classes)
    usual = KNOWN["imagenet"]
    if (dataset.mean, dataset.std) != (usual.mean, usual.std):
        say(
            f"{path} gets images less the mean {_words(dataset.mean)}, over {_words(dataset.std)}, "
            f"as {dataset.name} has them; torchvision's weights expect {_words(usual.mean)}, over "
            f"{_words(usual.std)}"
        )
    return freeze(network)


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)
