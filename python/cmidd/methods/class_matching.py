"""What DC, DSA and IDC share: gradients of classes are matched in a network that is trained.

    loss = sum over classes of distance(g_c(A_c(synthetic)), g_c(A_c(real)))
    g_c(images) = mean over images of d cross-entropy(network(image), c) / d parameters

The network has fresh random weights in every iteration and learns between updates of the iteration;
from what, a method says. A_c is one augmentation drawn for class and update, used on both sides.
The distance gives its derivative by the synthetic gradients itself, and autograd goes on from there
to the images.

A rank matches the gradients of its classes, and takes a share of the network's training where its
steps are long.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cmidd.augment import Draw, Strategy, augment
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images, taken
from cmidd.device import precision_on
from cmidd.methods.base import Method
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
from cmidd.options.dc import DCOptions
from cmidd.options.fields import check_filled_in
from cmidd.options.idc import IDCOptions
from cmidd.seeds import generator
from cmidd.training import Stack
from cmikernels.precision import computing


@dataclass(frozen=True, eq=False)
class MatchingDraws:
    """What is drawn for an update."""

    iteration: int
    update: int
    weights: dict[str, Tensor]  # the network's first ones, for update 0 alone
    real: list[Tensor]  # row numbers of the real images of each class
    augmentation: Draw  # of each class


class ClassMatching(Method):
    """Updates by gradients of classes on one dataset, of the classes that are this rank's."""

    shares_work = True
    options_that_may_diverge = ("lr_net",)
    name = "dc"
    """What profiles call its parts."""

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: DCOptions | IDCOptions,
        updates: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        least_axes: int = 0,
        seen_of_stored: int = 1,
        seen_at_most: int | None = None,
    ) -> None:
        """Prepare updates of images whose labels are `labels`, ascending.

        Args:
            dataset: the real images.
            labels: of the stored images.
            options: of the method.
            updates: of the images in an iteration.
            seed: of all draws.
            device: where to compute.
            dtype: of the images and the network.
            least_axes: axes that parameters whose gradients are matched have at least.
            seen_of_stored: images that the network sees of each stored one.
            seen_at_most: of a class, images that it sees at once; None: all.
        """
        check_filled_in(options)
        self.network_spec, self.updates = options.network, updates
        channels, size, _ = dataset.shape
        self.dataset, self.seed, self.batch_real = dataset, seed, options.batch_real
        self.device, self.dtype = device, dtype
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        network = build_network(options.network, channels, size, dataset.num_classes)
        check_images_are_independent(network, options.network)
        state = network.to(device, dtype).state_dict()
        self.stack = Stack(
            options.network,
            dataset.shape,
            dataset.num_classes,
            [state],
            precision_on(device, options.precision),
        )
        matched = {name: each for name, each in state.items() if each.ndim >= least_axes}
        if not matched:
            raise ValueError(
                "network: expected one with convolutions, whose gradients are matched, got "
                f"{options.network}"
            )
        self.distance = GradientDistance(options.metric, matched)
        self.share = ClassShare.of(dataset, labels)
        self.images = self.real_images()
        names = self.distance.names
        self.part = images_per_chunk(device, size, GPU_IMAGES_SECOND_ORDER)
        of_class = max(self.share.counts) * seen_of_stored
        together = min(
            images_per_chunk(device, size, GPU_IMAGES_FORWARD) // options.batch_real,
            self.part // min(of_class, seen_at_most or of_class),
        )
        self.gradients: GradientsClassByClass | GradientsVmapped
        if device.type == "cpu" or not together:
            self.gradients = GradientsClassByClass(self.stack, names, self.part)
        else:
            self.gradients = GradientsVmapped(self.stack, names, together)
        self.due: tuple[int, int] | None = None  # iteration and update that may follow

    def draw_matching(self, iteration: int, update: int) -> MatchingDraws:
        """The network's first weights, real images and augmentations of an update."""
        seed, words, classes = self.seed, (iteration, update), self.share.classes
        weights: dict[str, Tensor] = {}
        if update == 0:
            weights = draw_weights(self.stack.network, generator(seed, "network", iteration))
        return MatchingDraws(
            iteration,
            update,
            weights,
            draw_real_rows(self.dataset.train, classes, self.batch_real, seed, "real", *words),
            draw_for_classes(self.strategy, classes, seed, "dsa", *words),
        )

    def loss_and_gradient(self, images: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the stored images, `(N, ch, H, W)`."""
        iteration, update = draws.iteration, draws.update
        if update not in range(self.updates) or (update and (iteration, update) != self.due):
            raise RuntimeError(
                f"update {update} of iteration {iteration}: updates are 0 to {self.updates - 1}, "
                f"and each but the first comes after the one before it; the last were before "
                f"{self.due}"
            )
        self.due = iteration, update + 1
        if update == 0:
            with record_function(f"{self.name}.network"):
                self.load_network(draws.weights)
        else:
            with record_function(f"{self.name}.inner_training"):
                self.train_network(images.detach(), draws)
        with computing(self.stack.precision, self.device.type):
            loss, gradient = self.match(images.detach()[self.share.rows], draws)
        return loss, self.share.whole(gradient, images)

    def real_images(self) -> Images:
        """Those of the rank's classes, on the device."""
        return self.share.real_images(self.dataset.train, self.device)

    @abstractmethod
    def train_network(self, images: Tensor, draws: Any) -> None:
        """What the network learns before an update that is not the first of its iteration."""

    def kept(self) -> dict[str, Tensor]:
        """What depends on the updates of an iteration that are done."""
        return dict(self.stack.state)

    def state(self) -> dict[str, Tensor]:
        """Within an iteration, the network as it is trained and the update that is due."""
        if self.due is None or self.due[1] == self.updates:
            return {}
        return {"due": torch.tensor(self.due), **self.kept()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the network back."""
        self.due = None
        if not state:
            return
        kept = self.kept()
        if state.keys() != {"due", *kept}:
            raise ValueError(f"expected the state of {self.network_spec}, got {', '.join(state)}")
        iteration, update = state["due"].tolist()
        for name, tensor in kept.items():
            tensor.copy_(state[name])
        self.due = iteration, update

    @torch.no_grad()
    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network the first weights of an iteration."""
        for name, tensor in weights.items():
            self.stack.state[name].copy_(tensor)

    def seen(self, images: Tensor, labels: Tensor, classes: range, draws: Any) -> Sequence[Tensor]:  # noqa: ARG002
        """What the network sees of stored images of some of the rank's classes, and its labels."""
        return images, labels

    def match(self, images: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the rank's images with the network as it is."""
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        counts, first_class = self.share.counts, self.share.classes.start
        row, at_once = 0, self.gradients.classes
        for first in range(0, len(counts), at_once):
            last = min(first + at_once, len(counts))
            with record_function(f"{self.name}.real_gradients"):
                chosen = torch.cat(draws.real[first:last])
                there = taken(self.images, chosen - self.share.first_real)
                x = self.dataset.to_input(there, self.dtype)
                labels = self.dataset.train.labels[chosen]
                x = augment(x, self.strategy, draws.augmentation, labels - first_class)
                real = self.gradients(x, labels)
            with record_function(f"{self.name}.synthetic_gradients"):
                rows = slice(row, row + sum(counts[first:last]))
                row = rows.stop
                x = images[rows].requires_grad_()
                seen, labels = self.seen(x, self.share.labels[rows], range(first, last), draws)
                seen = augment(seen, self.strategy, draws.augmentation, labels - first_class)
                distance = partial(self.distance, real=real)
                loss, of_seen = self.gradients.match(seen.detach(), labels, distance)
                losses.append(loss)
                gradients += torch.autograd.grad(seen, x, of_seen)
        return torch.stack(losses).sum(), torch.cat(gradients)
