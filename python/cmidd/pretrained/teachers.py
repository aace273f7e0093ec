"""Teachers: trained networks whose logits and statistics others learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.datasets.known import KNOWN
from cmidd.networks import freeze
from cmidd.pretrained.bank import Bank
from cmidd.pretrained.state_dicts import network_of_file
from cmidd.storage.tensor_file import FileError, record_of


class Renormalised(nn.Sequential):
    """A network before which images are normalised anew, from a dataset's numbers to its own."""

    def __init__(
        self, network: nn.Module, dataset: Dataset, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        ours, theirs = (
            torch.tensor(numbers, dtype=torch.float64)[..., None, None]
            for numbers in ((dataset.mean, dataset.std), (tuple(mean), tuple(std)))
        )
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        super().__init__(_Affine(scale.float(), shift.float()), network)


class _Affine(nn.Module):
    """Images times `scale` and plus `shift`, both (channels, 1, 1)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def load_teachers(
    paths: Sequence[Path],
    dataset: Dataset,
    device: torch.device,
    *,
    option: str = "teacher",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    say: Callable[[str], None] = tqdm.write,
) -> list[nn.Module]:
    """All networks of the files that an option names, frozen and in eval mode.

    A file is a bank, or a state dict as `state_dicts.py` reads it. The networks take images as
    `dataset.to_input` makes them, and give logits of the dataset's classes.

    Args:
        paths: of the files.
        dataset: the images that they are teachers of.
        device: where the networks come to be.
        option: what errors call them.
        mean: of each channel, by which the images of all state dicts were normalised when those
            were trained; without it and `std` their networks see them as the dataset has them.
        std: as `mean`.
        say: told by what images are normalised, where that may not be as in training.

    """
    _check_normalisation(dataset, mean, std)
    teachers: list[nn.Module] = []
    for path in paths:
        if record_of(path) or not path.is_file():
            teachers += Bank.load_for(dataset, path, option, device)
            continue
        kind, network = _trained_elsewhere(path, dataset, option)
        if mean is not None and std is not None:
            network = Renormalised(network, dataset, mean, std)
        elif ranks.is_first():
            _say_normalisation(path, kind, dataset, say)
        teachers.append(freeze(network).to(device))
    return teachers


def _check_normalisation(
    dataset: Dataset, mean: Sequence[float] | None, std: Sequence[float] | None
) -> None:
    if (mean is None) != (std is None):
        given, other = ("mean", "std") if std is None else ("std", "mean")
        raise ValueError(f"{other}: expected numbers, as {given} is given too, got none")
    for name, numbers in (("mean", mean), ("std", std)):
        channels = dataset.shape.channels
        if numbers is not None and len(numbers) != channels:
            raise ValueError(
                f"{name}: expected one number for each of {channels} channels, got {len(numbers)}"
            )
        for number in numbers or ():
            if not math.isfinite(number) or (name == "std" and number <= 0):
                bound = "more than 0" if name == "std" else "finite"
                raise ValueError(f"{name}: expected numbers that are {bound}, got {number}")


def _trained_elsewhere(path: Path, dataset: Dataset, option: str) -> tuple[str, nn.Module]:
    """The network of a state dict, which says nothing of the images that it was trained on."""
    dataset.check_unseen({}, f"{option}: {path}")
    if dataset.whitening is not None:
        raise ValueError(
            f"{option}: expected images without whitening (zca) for a network that was trained "
            f"elsewhere, {path}"
        )
    try:
        return network_of_file(path, dataset.shape, dataset.num_classes)
    except FileError as error:
        raise FileError(f"{option}: {error}") from None


def _say_normalisation(path: Path, kind: str, dataset: Dataset, say: Callable[[str], None]) -> None:
    """Say what images are normalised by, unless it is what torchvision's weights expect."""
    usual = KNOWN["imagenet"]
    if kind.endswith("stem=small"):  # of which torchvision has none
        expected = "nothing is known of what its images were normalised by"
    elif (dataset.mean, dataset.std) != (usual.mean, usual.std):
        expected = f"torchvision's weights expect {_words(usual.mean)}, over {_words(usual.std)}"
    else:
        return
    say(
        f"{path} gets images less the mean {_words(dataset.mean)}, over {_words(dataset.std)}, as "
        f"{dataset.name} has them; {expected}"
    )


def _words(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)
