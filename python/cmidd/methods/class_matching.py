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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from cmidd.augment import Draw, Strategy, Turn, change, changes_of
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.device import precision_on
from cmidd.methods.base import Method
from cmidd.methods.class_draws import ClassShare, draw_for_classes, draw_real_rows
from cmidd.methods.class_gradients import GradientsClassByClass, GradientsTogether
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
from cmidd.parcel import sent
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmikernels.precision import computing


@dataclass(frozen=True, eq=False)
class MatchingDraws:
    """What is drawn for an update."""

    iteration: int
    update: int
    weights: dict[str, Tensor]  # the network's first ones, for update 0 alone
    real: list[Tensor]  # row numbers of the real images of each class
    augmentation: Draw  # of each class


class GroupPlan(NamedTuple):
    """What is done to images of classes that go through the network together."""

    rows: Tensor  # of the real images among those of the rank's classes
    real: list[Turn]  # their changes
    chosen: Tensor | None  # of the images that the network may see, those that it sees; None: all
    synthetic: list[Turn]  # their changes


@dataclass(frozen=True, eq=False)
class MatchingPlan:
    """What is drawn for an update as the device takes it."""

    weights: Mapping[str, Tensor]
    groups: list[GroupPlan]


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
        self.first_rows = [0, *accumulate(self.share.counts)]  # of each class, of its own
        self.images = self.real_images()
        names = self.distance.names
        self.part = images_per_chunk(device, size, GPU_IMAGES_SECOND_ORDER)
        of_class = max(self.share.counts) * seen_of_stored
        together = min(
            images_per_chunk(device, size, GPU_IMAGES_FORWARD) // options.batch_real,
            self.part // min(of_class, seen_at_most or of_class),
        )
        self.gradients: GradientsClassByClass | GradientsTogether
        if device.type == "cpu" or not together:
            self.gradients = GradientsClassByClass(self.stack, names, self.part)
        else:
            self.gradients = GradientsTogether(self.stack, names, together)
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
        with record_function(f"{self.name}.network"):
            plan = self.plan(draws)
            if update == 0:
                self.load_network(plan.weights)
        if update:
            with record_function(f"{self.name}.inner_training"):
                self.train_network(images.detach(), draws)
        with computing(self.stack.precision, self.device.type):
            loss, gradient = self.match(images.detach()[self.share.rows], draws, plan.groups)
        return loss, self.share.whole(gradient, images)

    def plan(self, draws: Any) -> MatchingPlan:
        """What was drawn as the device takes it, where it is then."""
        groups = []
        for classes in self.groups():
            real = torch.cat(draws.real[classes.start : classes.stop])
            of_real, of_synthetic = (
                changes_of(
                    self.strategy,
                    draws.augmentation,
                    torch.tensor(classes).repeat_interleave(torch.tensor(counts)),
                    self.dataset.shape[1:],
                    self.dtype,
                    self.device,
                )
                for counts in self.counts(classes, draws)
            )
            chosen = self.chosen(classes, draws)
            groups.append(GroupPlan(real - self.share.first_real, of_real, chosen, of_synthetic))
        plan = MatchingPlan(draws.weights, groups)
        there = sent(plan, self.device)
        if isinstance(self.images, Tensor):
            return there
        pairs = zip(there.groups, groups, strict=True)
        return replace(there, groups=[each._replace(rows=here.rows) for each, here in pairs])

    def groups(self) -> Iterator[range]:
        """The rank's classes, as many at a time as go through the network together."""
        classes = range(len(self.share.classes))
        for first in range(0, len(classes), self.gradients.classes):
            yield classes[first : first + self.gradients.classes]

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

    def counts(self, classes: range, draws: Any) -> tuple[list[int], list[int]]:
        """How many real images the network sees of each of some classes, and synthetic ones."""
        return [len(draws.real[c]) for c in classes], [self.share.counts[c] for c in classes]

    def chosen(self, classes: range, draws: Any) -> Tensor | None:  # noqa: ARG002
        """Which of the images of some of its classes that it may see it sees; None: all."""
        return None

    def match(
        self, images: Tensor, draws: Any, groups: Sequence[GroupPlan]
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the rank's images with the network as it is."""
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for classes, group in zip(self.groups(), groups, strict=True):
            numbers = self.share.classes[classes.start : classes.stop]
            of_real, of_synthetic = self.counts(classes, draws)
            with record_function(f"{self.name}.real_gradients"):
                x = change(self.dataset.to_input(self.images[group.rows], self.dtype), group.real)
                real = self.gradients(x, numbers, of_real)
            with record_function(f"{self.name}.synthetic_gradients"):
                rows = slice(self.first_rows[classes.start], self.first_rows[classes.stop])
                x = images[rows].requires_grad_()
                seen = x if self.view is None else self.view(x, self.share.labels[rows])[0]
                seen = seen if group.chosen is None else seen[group.chosen]
                seen = change(seen, group.synthetic)
                distance = partial(self.distance, real=real)
                found = self.gradients.match(seen.detach(), numbers, of_synthetic, distance)
                loss, of_seen = found
                losses.append(loss)
                gradients += torch.autograd.grad(seen, x, of_seen)
        return torch.stack(losses).sum(), torch.cat(gradients)
