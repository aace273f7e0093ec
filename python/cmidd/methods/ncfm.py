"""NCFM, matching of characteristic functions (Wang et al., CVPR 2025): one step.

    loss = sum over classes of  w d(functions of phi(A_c(real)), of phi(A_c(synthetic)))
                              + k mean over synthetic images of cross-entropy(last(A_c(image)))

`characteristic.py` has the functions and their distance d, at frequencies from a normal
distribution. phi is the embedding of a network of a bank whose weights lie between the first ones
of its training and the last ones, `l first + (1 - l) last` with l uniform in [0, 1); `last` is the
same network with the last ones. A_c is one augmentation drawn for the class and used on both sides.
Networks see the cells of stored images, enlarged.

Network, l and frequencies are drawn for an iteration and serve all its classes. These need nothing
of one another, so to a class it is as if it had drawn its own. A step of all classes ends an
iteration. The published loop takes two for each class in turn, one by each term; the step of all is
as long as these, as `class_steps.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from cmidd.augment import Draw, Strategy, Turn, change, changes_of
from cmidd.datasets import Dataset
from cmidd.device import precision_on
from cmidd.methods.base import CMIWeights, Method, MethodEntry
from cmidd.methods.characteristic import characteristic_functions, directions, distances
from cmidd.methods.class_draws import (
    ClassShare,
    class_means,
    draw_for_classes,
    draw_real_rows,
    whole_classes,
)
from cmidd.methods.class_steps import (
    adamw_after_each_class,
    sgd_after_each_class,
    steps_in_one,
)
from cmidd.methods.dm import layout_on
from cmidd.methods.ncfm_settings import published, published_with
from cmidd.methods.pixel_steps import PixelSteps
from cmidd.methods.stored_cells import StoredCells
from cmidd.networks import (
    GPU_IMAGES_FORWARD,
    Network,
    build_network,
    check_images_are_independent,
    freeze,
    images_per_chunk,
)
from cmidd.options.fields import check_filled_in
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.recipe import OPTIMIZERS
from cmidd.parcel import sent
from cmidd.pretrained.bank import Bank
from cmidd.seeds import generator
from cmidd.synthetic import SyntheticSet
from cmikernels.precision import computing


@dataclass(frozen=True, eq=False)
class NCFMDraws:
    """What is drawn for an iteration."""

    trained: int  # number of the network of the bank
    first: dict[str, Tensor]  # its first weights
    share: float  # of the first weights in those that are matched in
    frequencies: Tensor
    real: list[Tensor]  # row numbers of the real images of each class
    augmentation: Draw  # of each class


@dataclass(frozen=True, eq=False)
class NCFMPlan:
    """The same as the device takes it."""

    trained: int
    first: Mapping[str, Tensor]
    share: float
    frequencies: Tensor
    rows: list[Tensor]  # of the real images of each class among those of the rank's classes
    real: list[list[Turn]]  # the changes of these
    synthetic: list[list[Turn]]  # and of those that networks see of the images of each chunk


class NCFM(Method):
    """The step of NCFM on one dataset, of the classes that are this rank's."""

    shares_work = True

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: NCFMOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare steps on images whose labels are `labels`, ascending."""
        check_filled_in(options)
        if options.optimizer == "sgd" and options.weight_decay:
            raise ValueError(
                f"weight_decay: expected adamw with it, or 0, got {options.weight_decay:g} with sgd"
            )
        self.dataset, self.options, self.seed = dataset, options, seed
        self.device, self.dtype = device, dtype
        self.precision = precision_on(device, options.precision)
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        self.stored = StoredCells(dataset, options.factor, "ncfm", device, dtype)
        self.view = self.stored.view
        self.channel_scale = self.stored.std_of_channels**-1
        self.bank = Bank.load_for(dataset, options.matching_bank, "matching_bank", device)
        self.network_spec = self.bank.record["network"]
        channels, size, _ = dataset.shape
        network = build_network(self.network_spec, channels, size, dataset.num_classes)
        check_images_are_independent(network, self.network_spec, "matching_bank")
        self.network = self.real_network = freeze(network.to(device, dtype))
        self.layout = layout_on(device, dtype)
        if self.layout != torch.contiguous_format:  # in which the synthetic branch is faster
            self.real_network = deepcopy(network).to(memory_format=self.layout)  # type: ignore[call-overload]
        self._first_weights(0)  # so that a bank without them is an error now
        self.share = ClassShare.of(dataset, labels)
        self.images = self.share.real_images(dataset.train, device)
        self.chunk = images_per_chunk(device, size, GPU_IMAGES_FORWARD)
        self.chunks = whole_classes(self.share.counts, max(1, self.chunk // self.stored.in_one))
        of_chunks = [self.share.labels[rows] for _, rows in self.chunks]
        seen = [each.repeat_interleave(self.stored.in_one) for each in of_chunks]
        self.labels = [each.to(device) for each in seen]  # of what networks see of each chunk
        self.places = [each - self.share.classes.start for each in seen]
        self.steps: PixelSteps | None = None  # once there is what moves the images

    def _first_weights(self, number: int) -> dict[str, Tensor]:
        return self.bank.first_weights(number, f"matching_bank: {self.options.matching_bank}")

    @property
    def input_records(self) -> dict[str, Any]:
        """The bank's record."""
        return {"matching_bank": self.bank.record}

    def draw(self, iteration: int, update: int) -> NCFMDraws:  # noqa: ARG002
        """The network, frequencies, real images and augmentations of an iteration."""
        seed, classes, options = self.seed, self.share.classes, self.options
        draws = generator(seed, "pair", iteration)
        trained = int(torch.randint(len(self.bank), (), generator=draws))
        share = float(torch.rand((), dtype=torch.float64, generator=draws))
        shape = options.frequencies, self.network.embed_dim
        return NCFMDraws(
            trained,
            self._first_weights(trained),
            share,
            torch.randn(shape, generator=generator(seed, "frequencies", iteration)),
            draw_real_rows(
                self.dataset.train, classes, options.batch_real, seed, "real", iteration
            ),
            draw_for_classes(self.strategy, classes, seed, "dsa", iteration),
        )

    def loss_and_gradient(self, images: Tensor, draws: NCFMDraws) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the stored images, `(N, ch, H, W)`."""
        with computing(self.precision, self.device.type):
            with record_function("ncfm.network"):
                plan = self.plan(draws)
                last = self.load_network(plan)
            targets = self.real_functions(plan)
            with record_function("ncfm.synthetic_branch"):
                mine = images.detach()[self.share.rows]
                loss, gradient = self.match(mine, targets, last, plan)
        return loss, self.share.whole(gradient, images)

    def plan(self, draws: NCFMDraws) -> NCFMPlan:
        """What was drawn as the device takes it, where it is then."""
        like = self.dataset.shape[1:], self.dtype, self.device
        changes = partial(changes_of, self.strategy, draws.augmentation)
        plan = NCFMPlan(
            draws.trained,
            draws.first,
            draws.share,
            draws.frequencies.to(self.dtype),
            [rows - self.share.first_real for rows in draws.real],
            [changes(torch.full((len(rows),), k), *like) for k, rows in enumerate(draws.real)],
            [changes(places, *like) for places in self.places],
        )
        there = sent(plan, self.device)
        return there if isinstance(self.images, Tensor) else replace(there, rows=plan.rows)

    @torch.no_grad()
    def load_network(self, plan: NCFMPlan) -> Network:
        """Give the network the weights of an iteration; the one with the last weights."""
        last = self.bank[plan.trained].to(self.dtype)
        of_last = last.state_dict()
        between = {
            name: torch.lerp(of_last[name], first.to(of_last[name]), plan.share)
            for name, first in plan.first.items()
        }
        for network in (self.network, self.real_network):
            network.load_state_dict(between)
        return last

    @torch.no_grad()
    def real_functions(self, plan: NCFMPlan) -> Tensor:
        """Characteristic functions of the real images of each class, `(C, T, 2)`."""
        found = []
        for rows, turns in zip(plan.rows, plan.real, strict=True):
            with record_function("ncfm.real_images"):
                x = change(self.dataset.to_input(self.images[rows], self.dtype), turns)
            with record_function("ncfm.real_branch"):
                x = x.to(memory_format=self.layout)
                units = directions(self.in_parts(self.real_network.embed, x))
                found.append(characteristic_functions(units, [len(rows)], plan.frequencies))
        return torch.cat(found)

    def in_parts(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What a network makes of images, in their dtype, part by part."""
        with computing(self.precision, self.device.type, network=True):
            found = torch.cat([network(part) for part in torch.split(images, self.chunk)])
        return found.to(images.dtype)

    def match(
        self, images: Tensor, targets: Tensor, last: Network, plan: NCFMPlan
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the rank's images, in chunks of whole classes.

        The graph of one term is freed before that of the other is made.
        """
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for k, (classes, rows) in enumerate(self.chunks):
            x = images[rows].requires_grad_()
            seen = x if self.view is None else self.view(x, self.share.labels[rows])[0]
            seen = change(seen, plan.synthetic[k])
            counts = [count * self.stored.in_one for count in self.share.counts[classes]]
            inputs = seen.detach().requires_grad_()
            loss = self.distance(inputs, counts, targets[classes], plan.frequencies)
            (gradient,) = torch.autograd.grad(loss, inputs)
            losses.append(loss.detach())
            if self.options.calibration_weight:
                loss = self.calibration(last, inputs, self.labels[k], counts)
                gradient = gradient + torch.autograd.grad(loss, inputs)[0]
                losses.append(loss.detach())
            gradients += torch.autograd.grad(seen, x, gradient)
        return torch.stack(losses).sum(), torch.cat(gradients)

    def distance(
        self, seen: Tensor, counts: list[int], targets: Tensor, frequencies: Tensor
    ) -> Tensor:
        """The weighted sum over classes of the distance of characteristic functions."""
        options = self.options
        units = directions(self.in_parts(self.network.embed, seen))
        found = characteristic_functions(units, counts, frequencies)
        apart = distances(found, targets, options.amplitude_weight, options.phase_weight)
        return options.distance_weight * apart.sum()

    def calibration(self, last: Network, seen: Tensor, labels: Tensor, counts: list[int]) -> Tensor:
        """The weighted sum over classes of the mean cross-entropy of the last weights."""
        logits = self.in_parts(last, seen)
        of_images = F.cross_entropy(logits, labels, reduction="none")
        return self.options.calibration_weight * class_means(of_images[:, None], counts).sum()

    def optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """AdamW or SGD, whose step size is halved where the loss is no longer smaller."""
        made: torch.optim.Optimizer
        options, classes = self.options, self.dataset.num_classes
        if options.optimizer == "adamw":
            made, in_one = adamw_after_each_class(groups, options.weight_decay, classes)
        else:
            made = sgd_after_each_class(groups, momentum, classes)
            in_one = steps_in_one(momentum, classes)
        self.steps = PixelSteps(made, self.stored, self.options.patience, in_one=in_one)
        return made

    def take_step(self, optimizer: torch.optim.Optimizer, images: Tensor, loss: Tensor) -> None:
        """A step of the pixels."""
        assert self.steps is not None
        assert self.steps.optimizer is optimizer
        self.steps.take(images, loss)

    def log_values(self) -> dict[str, Tensor]:
        """The step size."""
        if self.steps is None:
            return {}
        return {"lr_images": torch.tensor(self.steps.size, dtype=torch.float64)}

    def state(self) -> dict[str, Tensor]:
        """What the step size depends on."""
        return {} if self.steps is None else self.steps.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put it back."""
        if state:
            if self.steps is None:
                raise ValueError("expected no state before there is an optimizer")
            self.steps.load_state(state)

    def constrain_images(self, images: Tensor) -> None:
        """Clamp the images to pixels."""
        images.copy_(self.stored.clamped(images))

    def finish(self, result: SyntheticSet) -> SyntheticSet:
        """The set with its images clamped once more."""
        return replace(result, source=self.stored.clamped(result.images))


NCFM_ENTRY = MethodEntry(
    NCFM,
    NCFMOptions,
    published,
    CMIWeights(ours={"digits": (10, 10)}),
    published_on={name: partial(published_with, name) for name in OPTIMIZERS},
    published_by="optimizer",
)
