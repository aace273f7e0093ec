"""DC and DSA, gradient matching (Zhao et al., ICLR 2021; Zhao and Bilen, ICML 2021).

`class_matching.py` has the loss. The network trains on the synthetic images between updates of an
iteration, and all of its weights that lead to an output take part in the distance. DSA augments
real and synthetic images alike, DC none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.methods.base import CMIWeights, MethodEntry, Published, origin_on
from cmidd.methods.class_matching import ClassMatching, MatchingDraws
from cmidd.networks.usual import gradient_network
from cmidd.options.dc import DCOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.recipe import Recipe
from cmidd.seeds import seed_of
from cmidd.training import Training, ranks_share_steps
from cmidd.training_draws import EpochDraws, draw_epochs


@dataclass(frozen=True, eq=False)
class DCDraws(MatchingDraws):
    """What is drawn for an update."""

    epochs: list[EpochDraws]  # of the network's training before any update but the first


class GradientMatching(ClassMatching):
    """The updates of DC and DSA on one dataset."""

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: DCOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare updates of images whose labels are `labels`, ascending."""
        super().__init__(dataset, labels, options, options.outer_steps, seed, device, dtype)
        self.options, self.labels = options, labels.to(device)
        self.training: Training | None = None
        self.recipe = Recipe(
            options.inner_epochs,
            options.lr_net,
            momentum=0.0,
            weight_decay=0.0,
            batch_size=options.batch_net,
            drop_at=1.0,
            augmentation=options.augmentation,
            precision=self.stack.precision,
        )
        if options.compile:  # for the parts of a CPU; a GPU trains on whole batches
            batches = [min(len(labels), options.batch_net)]
            if device.type == "cpu":
                batches = [min(self.part, size) for size in (options.batch_real, *batches)]
            self.stack.compile(*batches)

    def draw(self, iteration: int, update: int) -> DCDraws:
        """The network's weights or training, real images and augmentations of an update."""
        epochs: list[EpochDraws] = []
        if update:
            seeds = [seed_of(self.seed, "inner", iteration, update - 1)]
            epochs = list(draw_epochs(seeds, len(self.labels), self.recipe, self.strategy))
        return DCDraws(**vars(self.draw_matching(iteration, update)), epochs=epochs)

    def train_network(self, images: Tensor, draws: DCDraws) -> None:
        """What the network learns from the images after an update."""
        if self.training is None:
            shared = ranks_share_steps(images, self.recipe.batch_size)
            self.training = Training(self.stack, self.recipe, self.strategy, shared=shared)
        self.training(images, self.labels, draws.epochs)


# Images per class -> updates of the images in an iteration, and epochs of the network between two.
STEPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def steps(ipc: int) -> tuple[int, int]:
    """Updates in an iteration and epochs between two, as published or, for other `ipc`, ours.

    Ours are as many updates as images, 50 at most, and about 500 epochs in all, 50 at most between
    two; the published program refuses these numbers of images.
    """
    if ipc in STEPS:
        return STEPS[ipc]
    outer = min(ipc, 50)
    return outer, min(50, max(10, round(500 / outer)))


def _published(dataset: Dataset, ipc: int, init: str, evaluation: dict[str, Any]) -> Published:
    outer, inner = steps(ipc)
    network = gradient_network(dataset.shape.height)
    is_published = ipc in STEPS and network == "convnet"
    return Published(
        loop={
            "iterations": 1000,
            "init": init,
            "lr_images": 0.1,
            "report_every": 1,
            "checkpoint_every": 1,
        },
        options={"outer_steps": outer, "inner_epochs": inner, "network": network},
        evaluation=evaluation,
        origin=origin_on(dataset, "the", exact=is_published),
    )


def published_dc(dataset: Dataset, ipc: int) -> Published:
    """Settings of DC; its sets are judged without augmentation but on MNIST."""
    evaluation: dict[str, Any] = {"epochs": 300, "augmentation": "none"}
    if dataset.name == "mnist":
        evaluation = {"epochs": 1000, "augmentation": "crop_scale_rotate"}
    return _published(dataset, ipc, "noise", evaluation)


def published_dsa(dataset: Dataset, ipc: int) -> Published:
    """Settings of DSA."""
    return _published(dataset, ipc, "real", {})


DC_ENTRY = MethodEntry(
    GradientMatching,
    DCOptions,
    published_dc,
    CMIWeights(published={"cifar10": (50000, 10000)}, ours={"digits": (10, 10)}),  # DSA's
)
# None of three weights for digits was better than another.
DSA_ENTRY = MethodEntry(
    GradientMatching,
    DSAOptions,
    published_dsa,
    CMIWeights(
        published={"svhn": (80000, 10000), "cifar10": (50000, 10000), "cifar100": (80000, 20000)},
        ours={"digits": (10, 10)},
    ),
)
