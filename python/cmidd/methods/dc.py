"""DC and DSA, gradient matching (Zhao et al., ICLR 2021; Zhao and Bilen, ICML 2021).

    loss = sum over classes of distance(g_c(A_c(synthetic)), g_c(A_c(real)))
    g_c(images) = mean over images of d cross-entropy(network(image), c) / d parameters

The network has fresh random weights in every iteration and trains on the synthetic images between
updates of the iteration. A_c is one augmentation drawn for class and update, used on both sides; DC
has none. The distance gives its derivative by the synthetic gradients itself, and autograd goes on
from there to the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cmidd import ranks
from cmidd.augment import Draw, Strategy, augment
from cmidd.datasets import Dataset
from cmidd.device import precision_on
from cmidd.methods.base import CMIWeights, Method, MethodEntry, Published, origin_on
from cmidd.methods.class_draws import ClassShare, draw_for_classes, draw_real_rows
from cmidd.methods.class_gradients import GradientsClassByClass, GradientsVmapped
from cmidd.methods.gradient_distance import GradientDistance
from cmidd.networks import (
    GPU_IMAGES_FORWARD,
    GPU_IMAGES_SECOND_ORDER,
    build_network,
    check_images_are_independent,
    draw_weights,
    images_per_chunk,
)
from cmidd.networks.usual import gradient_network
from cmidd.options.dc import DCOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.fields import check_filled_in
from cmidd.options.recipe import Recipe
from cmidd.seeds import generator, seed_of
from cmidd.training import EpochDraws, Stack, draw_epochs, train
from cmikernels.precision import computing

LONG = 256 * 3 * 64 * 64
"""Numbers in a batch from which on ranks share a step of the network on a GPU."""


@dataclass(frozen=True, eq=False)
class DCDraws:
    """What is drawn for an update."""

    iteration: int
    update: int
    weights: dict[str, Tensor]  # the network's first ones, for update 0 alone
    epochs: list[EpochDraws]  # of the network's training before any other update
    real: list[Tensor]  # row numbers of the real images of each class
    augmentation: Draw  # of each class


class GradientMatching(Method):
    """The updates of DC and DSA on one dataset.

    A rank matches the gradients of its classes, and takes a share of the network's training where
    its steps are long.
    """

    shares_work = True
    options_that_may_diverge = ("lr_net",)

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
        check_filled_in(options)
        self.network_spec, self.updates = options.network, options.outer_steps
        channels, size, _ = dataset.shape
        self.dataset, self.options, self.seed = dataset, options, seed
        self.device, self.dtype = device, dtype
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        precision = precision_on(device, options.precision)
        self.recipe = Recipe(
            options.inner_epochs,
            options.lr_net,
            momentum=0.0,
            weight_decay=0.0,
            batch_size=options.batch_net,
            drop_at=1.0,
            augmentation=options.augmentation,
            precision=precision,
        )
        network = build_network(options.network, channels, size, dataset.num_classes)
        check_images_are_independent(network, options.network)
        state = network.to(device, dtype).state_dict()
        self.stack = Stack(options.network, dataset.shape, dataset.num_classes, [state], precision)
        self.distance = GradientDistance(options.metric, state)
        self.labels = labels.cpu()
        self.share = ClassShare.of(dataset, labels)
        self.images = self.share.real_images(dataset.train).to(device)
        names = self.distance.names
        part = images_per_chunk(device, size, GPU_IMAGES_SECOND_ORDER)
        together = min(
            images_per_chunk(device, size, GPU_IMAGES_FORWARD) // options.batch_real,
            part // max(self.share.counts),
        )
        self.gradients: GradientsClassByClass | GradientsVmapped
        if device.type == "cpu" or not together:
            self.gradients = GradientsClassByClass(self.stack, names, part)
        else:
            self.gradients = GradientsVmapped(self.stack, names, together)
        if options.compile:  # for the parts of a CPU; a GPU trains on whole batches
            whole = min(len(labels), options.batch_net)
            self.stack.compile(part if device.type == "cpu" else whole)
        self.due: tuple[int, int] | None = None  # iteration and update that may follow

    def draw(self, iteration: int, update: int) -> DCDraws:
        """The network's weights or training, real images and augmentations of an update."""
        seed, words, classes = self.seed, (iteration, update), self.share.classes
        weights: dict[str, Tensor] = {}
        epochs: list[EpochDraws] = []
        if update == 0:
            weights = draw_weights(self.stack.network, generator(seed, "network", iteration))
        else:
            seeds = [seed_of(seed, "inner", iteration, update - 1)]
            epochs = list(draw_epochs(seeds, len(self.labels), self.recipe, self.strategy))
        return DCDraws(
            iteration,
            update,
            weights,
            epochs,
            draw_real_rows(
                self.dataset.train, classes, self.options.batch_real, seed, "real", *words
            ),
            draw_for_classes(self.strategy, classes, seed, "dsa", *words),
        )

    def loss_and_gradient(self, images: Tensor, draws: DCDraws) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the synthetic images, `(N, ch, H, W)`."""
        iteration, update = draws.iteration, draws.update
        if update not in range(self.updates) or (update and (iteration, update) != self.due):
            raise RuntimeError(
                f"update {update} of iteration {iteration}: updates are 0 to {self.updates - 1}, "
                f"and each but the first comes after the one before it; the last were before "
                f"{self.due}"
            )
        self.due = iteration, update + 1
        if update == 0:
            with record_function("dc.network"):
                self.load_network(draws.weights)
        else:
            with record_function("dc.inner_training"):
                self.train_network(images.detach(), draws.epochs)
        with computing(self.stack.precision, self.device.type):
            loss, gradient = self.match(images.detach()[self.share.rows], draws)
        return loss, self.share.whole(gradient, images)

    def state(self) -> dict[str, Tensor]:
        """Within an iteration, the network as it is trained and the update that is due."""
        if self.due is None or self.due[1] == self.updates:
            return {}
        return {"due": torch.tensor(self.due), **self.stack.state}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the network back."""
        self.due = None
        if not state:
            return
        if state.keys() != {"due", *self.stack.state}:
            raise ValueError(f"expected the state of {self.network_spec}, got {', '.join(state)}")
        iteration, update = state["due"].tolist()
        self.load_network({name: state[name] for name in self.stack.state})
        self.due = iteration, update

    @torch.no_grad()
    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network the first weights of an iteration."""
        for name, tensor in weights.items():
            self.stack.state[name].copy_(tensor)

    def train_network(self, images: Tensor, epochs: Sequence[EpochDraws]) -> None:
        """What the network learns from the images after an update."""
        labels = self.labels.to(self.device)
        # Shorter steps on a GPU would take no less with a sum over ranks (docs/guide/scaling.md).
        is_long = self.device.type == "cpu" or images[: self.recipe.batch_size].numel() >= LONG
        shared = ranks.count() > 1 and is_long
        train(self.stack, images, labels, self.recipe, self.strategy, epochs, shared=shared)

    def match(self, images: Tensor, draws: DCDraws) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the rank's images with the network as it is."""
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        counts, first_class = self.share.counts, self.share.classes.start
        row, at_once = 0, self.gradients.classes
        for first in range(0, len(counts), at_once):
            last = min(first + at_once, len(counts))
            with record_function("dc.real_gradients"):
                chosen = torch.cat(draws.real[first:last])
                there = (chosen - self.share.first_real).to(self.device)
                x = self.dataset.to_input(self.images[there], self.dtype)
                labels = self.dataset.train.labels[chosen]
                x = augment(x, self.strategy, draws.augmentation, labels - first_class)
                real = self.gradients(x, labels)
            with record_function("dc.synthetic_gradients"):
                rows = slice(row, row + sum(counts[first:last]))
                row = rows.stop
                x, labels = images[rows].requires_grad_(), self.share.labels[rows]
                seen = augment(x, self.strategy, draws.augmentation, labels - first_class)
                distance = partial(self.distance, real=real)
                loss, of_seen = self.gradients.match(seen.detach(), labels, distance)
                losses.append(loss)
                gradients += torch.autograd.grad(seen, x, of_seen)
        return torch.stack(losses).sum(), torch.cat(gradients)


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
