"""IDC, efficient parametrisation by cells (Kim et al., ICML 2022).

`class_matching.py` has the loss, in which the network sees the cells of stored images, enlarged.
Convolutions alone take part in the distance. Between updates of an iteration the network trains on
real images, by SGD with momentum whose buffers live as long as the network.

One step of all classes (`class_steps.py`) is the same as the published step after each of them, up
to the part of a displacement that is still to come where images are clamped. `per_class_step`
clamps them as they are then.

Pixels. The published loop stores x in [0, 1] and normalises what it decodes. The same step of what
is stored here, z = (x - mean) / std as in `stored_cells.py`, is

    z <- z - (a / std^2) dL/dz
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.methods.base import CMIWeights, MethodEntry, Published, origin_on
from cmidd.methods.class_matching import ClassMatching, MatchingDraws
from cmidd.methods.class_steps import sgd_after_each_class, steps_in_one
from cmidd.methods.stored_cells import StoredCells
from cmidd.networks.usual import gradient_network
from cmidd.options.fields import check_filled_in
from cmidd.options.idc import IDCOptions
from cmidd.options.recipe import Recipe
from cmidd.seeds import generator, seed_of
from cmidd.synthetic import SyntheticSet
from cmidd.training import Progress, Training, ranks_share_steps
from cmidd.training_draws import EpochDraws, draw_epoch


@dataclass(frozen=True, eq=False)
class IDCDraws(MatchingDraws):
    """What is drawn for an update."""

    cells: list[Tensor]  # of each class, which of the images that the network may see it sees
    training: EpochDraws | None  # of the network, before any update but the first


class IDC(ClassMatching):
    """The updates of IDC on one dataset."""

    name = "idc"
    bank_draw = "update"

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: IDCOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare updates of images whose labels are `labels`, ascending."""
        check_filled_in(options)
        options.check()
        self.stored = StoredCells(dataset, options.factor, self.name, device, dtype)
        super().__init__(
            dataset,
            labels,
            options,
            options.inner_steps,
            seed,
            device,
            dtype,
            least_axes=3,
            seen_of_stored=self.stored.in_one,
            seen_at_most=options.batch_syn,
        )
        self.options, self.labels = options, labels.cpu()
        self.real_labels = dataset.train.labels.to(device)
        self.view = self.stored.view
        self.term_factor = float(dataset.num_classes)
        self.channel_scale = self.stored.std_of_channels**-2
        self.recipe = Recipe(
            1,
            options.lr_net,
            batch_size=options.batch_net,
            drop_at=1.0,
            augmentation=options.augmentation,
            precision=self.stack.precision,
            cutmix=options.cutmix_net,
        )
        self.network_strategy = self.strategy
        if options.cutmix_net:
            self.network_strategy = self.strategy.without("cutout")
        self.training = Training(
            self.stack,
            self.recipe,
            self.network_strategy,
            shared=ranks_share_steps(self.all_real, self.recipe.batch_size),
            seen=partial(dataset.to_input, dtype=dtype),
        )
        self.velocity = [torch.zeros_like(each) for each in self.stack.parameters]
        self.steps: torch.optim.SGD | None = None  # what moves the images, and their momentum
        self.momentum = 0.0  # of a step after each class

    def real_images(self) -> Images:
        """The same, as a part of all, which the network trains on."""
        mine, self.all_real = self.share.real_images_of_all(self.dataset.train, self.device)
        return mine

    def draw(self, iteration: int, update: int) -> IDCDraws:
        """The network's weights or training, real images, cells and augmentations of an update."""
        seed, training = self.seed, None
        if update:
            seeds, count = [seed_of(seed, "inner", iteration, update - 1)], len(self.all_real)
            whole = -(-self.options.images_net // self.recipe.batch_size) * self.recipe.batch_size
            training = draw_epoch(seeds, count, self.recipe, self.network_strategy, 0, whole)
        cells = []
        for c, stored in zip(self.share.classes, self.share.counts, strict=True):
            there, most = stored * self.stored.in_one, self.options.batch_syn
            draws = generator(seed, "cells", iteration, update, c)
            cells.append(
                torch.arange(there)
                if there <= most
                else torch.randperm(there, generator=draws)[:most]
            )
        matching = self.draw_matching(iteration, update)
        return IDCDraws(**vars(matching), cells=cells, training=training)

    def counts(self, classes: range, draws: IDCDraws) -> tuple[list[int], list[int]]:
        """How many real images the network sees of each of some classes, and cells."""
        return super().counts(classes, draws)[0], [len(draws.cells[c]) for c in classes]

    def chosen(self, classes: range, draws: IDCDraws) -> Tensor:
        """The cells that were drawn of those of some classes."""
        there = [self.share.counts[c] * self.stored.in_one for c in classes]
        firsts = [0, *accumulate(there)][:-1]
        return torch.cat([first + draws.cells[c] for first, c in zip(firsts, classes, strict=True)])

    def train_network(self, images: Tensor, draws: IDCDraws) -> None:  # noqa: ARG002
        """What the network learns from real images after an update."""
        assert draws.training is not None
        before = Progress(optimizer=[{"momentum_buffer": each} for each in self.velocity])
        self.training(self.all_real, self.real_labels, [draws.training], done=before)

    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network the first weights of an iteration, and no momentum."""
        super().load_network(weights)
        torch._foreach_zero_(self.velocity)

    def kept(self) -> dict[str, Tensor]:
        """The network and its momentum."""
        velocity = {f"velocity {k}": each for k, each in enumerate(self.velocity)}
        return {**super().kept(), **velocity}

    def optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """SGD whose step is that of one step after each class."""
        self.momentum = momentum
        self.steps = sgd_after_each_class(groups, momentum, self.dataset.num_classes)
        return self.steps

    def constrain_images(self, images: Tensor) -> None:
        """Clamp the images to pixels, with `per_class_step` before all steps of theirs are done."""
        to_come = self._to_come() if self.options.per_class_step else None
        if to_come is not None:
            images += to_come
        images.copy_(self.stored.clamped(images))
        if to_come is not None:
            images -= to_come

    def _to_come(self) -> Tensor | None:
        """By what the momentum has moved images in steps after the last class's."""
        if self.steps is None:
            return None
        (group,) = self.steps.param_groups
        velocity: Tensor | None = self.steps.state[group["params"][0]].get("momentum_buffer")
        if velocity is None:
            return None
        m, classes = self.momentum, self.dataset.num_classes
        rate = group["lr"] / steps_in_one(m, classes)
        shares = [rate * sum(m ** (classes - 1 - k) for k in range(c)) for c in range(classes)]
        of_images = velocity.new_tensor(shares)[self.labels.to(velocity.device)]
        return of_images.view(-1, 1, 1, 1) * velocity

    def finish(self, result: SyntheticSet) -> SyntheticSet:
        """The set with its images clamped once more."""
        return replace(result, source=self.stored.clamped(result.images))


class Setting(NamedTuple):
    """What is known for a dataset."""

    metric: str
    lr_images: float
    """For 10 stored images per class of `side`, in pixels from 0 to 1."""
    images_net: int
    cutmix: float = 0.5
    """While the network trains and in evaluation."""
    augmentation: str = "color_crop_cutout"
    side: int = 32
    factor: int = 2
    iterations: int = 2000
    inner_steps: int = 100
    origin: str = "published"


SETTINGS = {
    "cifar10": Setting("mse", 5e-3, 2000),
    "cifar100": Setting("mse", 5e-3, 2000),
    "svhn": Setting("mse", 5e-3, 500),
    "mnist": Setting("l1", 1e-4, 500, 0.0, "color_crop", 28),
    "fashionmnist": Setting("l1", 1e-4, 500),
    "tinyimagenet": Setting("mse", 5e-3, 1000),
    "digits": Setting(
        "mse", 0.03, 64, side=8, factor=1, iterations=20, inner_steps=5, origin="ours"
    ),
}
"""Ours were chosen by training images that were held out (docs/results/digits.md)."""


def published(dataset: Dataset, ipc: int) -> Published:
    """Settings of IDC; the step size follows the images of a class and their area."""
    setting = SETTINGS.get(dataset.name, SETTINGS["cifar10"])
    size, network = dataset.shape.height, gradient_network(dataset.shape.height)
    origin = origin_on(dataset, "IDC's", exact=network != "convnet:depth=2")
    if setting.origin == "ours":
        origin = "ours, chosen by training images that were held out"
    lr_images = 1e-6 if (dataset.name, ipc) == ("tinyimagenet", 50) else setting.lr_images
    return Published(
        loop={
            "iterations": setting.iterations,
            "init": "cells",
            "lr_images": lr_images * ipc / 10 * (size / setting.side) ** 2,
            "report_every": 1,
            "checkpoint_every": 1,
        },
        options={
            "network": network,
            "factor": setting.factor,
            "inner_steps": setting.inner_steps,
            "metric": setting.metric,
            "images_net": setting.images_net,
            "cutmix_net": setting.cutmix,
            "augmentation": f"idc:{setting.augmentation}",
        },
        evaluation={
            "epochs": 1000,
            "augmentation": "idc:color_crop_flip_scale_rotate",
            "batch_size": 64,
            "drop_by": 5.0,
            "drop_at": [0.666, 0.833],  # of 1000 epochs after 666 and 833, as published
            "cutmix": setting.cutmix,
        },
        origin=f"{origin}, for factor {setting.factor}",
    )


IDC_ENTRY = MethodEntry(
    IDC,
    IDCOptions,
    published,
    CMIWeights(
        published={"svhn": (50, 50), "cifar10": (100, 50), "cifar100": (100, 50)},
        ours={"digits": (1, 1)},
    ),
)
