"""IID, inter-sample and inter-feature relations (Deng et al., CVPR 2024), on DM or IDM: one step.

    loss = the base's + sum over classes of
               a || K(A_c(real)) - K(A_c(synthetic)) ||^2
             + b sum over synthetic images of || g(A_c(image)) - their mean ||^2
    K(images) = mean over images of (F - mean F)(F - mean F)^T

F is the embedding phi(image) as channels x positions, so that K relates the channels, and the mean
of F is over the images. g is the embedding of a network trained on the real images, drawn from a
bank in every iteration. Synthetic images are what networks see of stored ones, on IDM the cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.methods import dm, idm
from cmidd.methods.base import CMIWeights, MethodEntry, Published
from cmidd.methods.class_draws import class_means, whole_classes
from cmidd.methods.dm import DM, DMDraws
from cmidd.methods.idm import IDM, IDMDraws
from cmidd.networks import GPU_IMAGES_SECOND_ORDER, Network, images_per_chunk
from cmidd.options.dm import DMOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.pretrained.bank import Bank
from cmidd.seeds import generator


@dataclass(frozen=True, eq=False)
class IIDDraws(DMDraws):
    """What IID draws for an iteration."""

    centre_network: int  # number of the network of the bank


class IID(DM):
    """The step of IID on DM on one dataset, of the classes that are this rank's."""

    options: IIDOptions

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: IIDOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare steps on images whose labels are `labels`, ascending."""
        options.check()
        super().__init__(dataset, labels, options, seed, device, dtype)
        self.channels = self._channels()
        # What a ResNet-18 keeps of an image is more than the ConvNet's.
        chunk = images_per_chunk(device, dataset.shape.height, GPU_IMAGES_SECOND_ORDER)
        self.chunks = whole_classes(self.share.counts, chunk // self.seen_of_stored)
        self.bank: Bank | None = None
        self.centre_network: Network | None = None
        most = int(torch.bincount(labels.cpu()).max()) * self.seen_of_stored
        if options.centre_weight and most > 1:
            self.bank = _load_bank(dataset, options, device)

    def _channels(self) -> int:
        """Channels of the embedding's maps."""
        with torch.no_grad():
            one = torch.zeros(1, *self.dataset.shape, device=self.device, dtype=self.dtype)
            maps: Tensor = self.network.features(one)
        if maps.dim() != 4 and self.options.covariance_weight:
            raise ValueError(
                "network: expected one whose embedding is of maps, as convnet's is, for "
                f"covariances of their channels, got {self.network_spec}; "
                "with covariance_weight 0 it may be any"
            )
        return maps.shape[1]

    @property
    def input_records(self) -> dict[str, Any]:
        """The bank's record."""
        return {} if self.bank is None else {"centre_bank": self.bank.record}

    def draw(self, iteration: int, update: int) -> IIDDraws:
        """What DM draws, and a network of the bank."""
        number = self.draw_centre_network(iteration)
        return IIDDraws(**vars(super().draw(iteration, update)), centre_network=number)

    def draw_centre_network(self, iteration: int) -> int:
        """The number of a network of the bank."""
        draws = generator(self.seed, "centre", iteration)
        count = 1 if self.bank is None else len(self.bank)
        return int(torch.randint(count, (), generator=draws))

    def loss_and_gradient(self, images: Tensor, draws: DMDraws) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the synthetic images, `(N, ch, H, W)`."""
        assert isinstance(draws, IIDDraws)
        if self.bank is not None:
            self.centre_network = self.bank[draws.centre_network].to(self.dtype)
        return super().loss_and_gradient(images, draws)

    def statistics(self, features: Tensor, counts: list[int]) -> list[Tensor]:
        """Class means and covariances, these by the root of the weight that squares are to have."""
        found = super().statistics(features, counts)
        if self.options.covariance_weight:
            root = self.options.covariance_weight**0.5
            found.append(root * class_covariances(features, counts, self.channels))
        return found

    def loss_of(self, seen: Tensor, targets: list[Tensor], classes: slice) -> Tensor:
        """The base's of both statistics, and the distances of images to their centre."""
        loss, counts = super().loss_of(seen, targets, classes), self.counts[classes]
        if self.centre_network is None or max(counts) == 1:  # where an image is the centre
            return loss
        with self.as_network():
            features = self.centre_network.embed(seen.contiguous()).to(seen.dtype)
        return loss + self.options.centre_weight * distance_to_centres(features, counts)


@dataclass(frozen=True, eq=False)
class IIDOnIDMDraws(IIDDraws, IDMDraws):
    """What IID on IDM draws for an iteration."""


class IIDOnIDM(IID, IDM):
    """The step of IID on IDM: IID's terms in the place where IDM has DM's."""

    def draw(self, iteration: int, update: int) -> IIDOnIDMDraws:
        """What IDM draws, and a network of the bank."""
        number = self.draw_centre_network(iteration)
        return IIDOnIDMDraws(**vars(IDM.draw(self, iteration, update)), centre_network=number)


def make(
    dataset: Dataset,
    labels: Tensor,
    options: IIDOptions,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> IID:
    """IID on the base that the options name."""
    base = IIDOnIDM if options.base == "idm" else IID
    return base(dataset, labels, options, seed, device, dtype)


def class_covariances(features: Tensor, counts: list[int], channels: int) -> Tensor:
    """Covariance of the channels of each class, `(C, channels, channels)`, summed over positions.

    Args:
        features: `(N, channels * positions)`, class by class.
        counts: images of each class.
        channels: how many there are.
    """
    if len(set(counts)) > 1:
        parts = torch.split(features, counts)
        return torch.cat([class_covariances(part, [len(part)], channels) for part in parts])
    maps = features.view(len(counts), counts[0], channels, -1)
    away = (maps - maps.mean(dim=1, keepdim=True)).transpose(1, 2).flatten(2)
    return away @ away.mT / counts[0]


def distance_to_centres(features: Tensor, counts: list[int]) -> Tensor:
    """Sum over features `(N, M)` of the squared distance to the mean of their class."""
    centres = class_means(features, counts)
    if len(set(counts)) == 1:
        away = features.view(len(counts), counts[0], -1) - centres[:, None]
        return away.flatten(0, 1).square().sum()
    parts = zip(torch.split(features, counts), centres, strict=True)
    return torch.cat([part - centre for part, centre in parts]).square().sum()


def _load_bank(dataset: Dataset, options: IIDOptions, device: torch.device) -> Bank:
    if options.centre_bank is None:
        raise ValueError(
            "centre_bank: expected the file of a bank, made by cmidd pretrain, as centre_weight is "
            f"{options.centre_weight:g}; with 0 none is needed"
        )
    return Bank.load_for(dataset, options.centre_bank, "centre_bank", device)


WEIGHTS: Mapping[str, float] = {"covariance_weight": 0.01, "centre_weight": 0.05}
WEIGHTS_ON_IDM: Mapping[str, float] = {"covariance_weight": 0.03, "centre_weight": 0.01}
"""As published for CIFAR-10 at 10 images per class, and for nothing else."""

ON_DIGITS: Mapping[str, float] = {**WEIGHTS, "centre_weight": 0.0005}
"""Ours, on DM: with 0.05 the images of a class become one (docs/results/digits.md)."""


def published(dataset: Dataset, ipc: int) -> Published:
    """Settings of IID on DM: its weights, and DM's for all else."""
    of_dm = dm.published(dataset, ipc)
    batch_real = DMOptions().batch_real
    weights, origin = WEIGHTS, _origin(dataset, ipc, " is DM's published default")
    if dataset.name == "digits":
        weights, origin = ON_DIGITS, f"{origin}, but centre_weight is ours"
    options = {**of_dm.options, "batch_real": batch_real, **weights}
    return replace(of_dm, options=options, origin=origin)


def published_on_idm(dataset: Dataset, ipc: int) -> Published:
    """Settings of IID on IDM: its weights, and IDM's for all else."""
    of_idm = idm.published(dataset, ipc)
    options = {**vars(IDMOptions()), **of_idm.options, **WEIGHTS_ON_IDM}
    return replace(of_idm, options=options, origin=_origin(dataset, ipc, f": {of_idm.origin}"))


def _origin(dataset: Dataset, ipc: int, of_base: str) -> str:
    if (dataset.name, ipc) == ("cifar10", 10):
        return "as published"
    return (
        f"not published for {dataset.name} at {ipc} images per class; the weights are those for "
        f"CIFAR-10 at 10, all else{of_base}"
    )


IID_ENTRY = MethodEntry(
    make,
    IIDOptions,
    published,
    CMIWeights(ours={"digits": (1, 1)}),  # those of DM, whose loss is as large
    published_on={"idm": published_on_idm},
)
