"""One batch of recovered images: its loss, and the steps that move it.

    loss = cross-entropy(teacher(A(x)), y) + bn_weight distance(A(x)) + cmi_weight CMI(x)
    x   <- clamp(step of Adam, along the gradient, to the range of pixels)

`A` is what the step's draws make of the images. The distance is that of `statistics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.datasets.pixels import normalise
from cmidd.options.recover import RecoverCMIOptions, RecoverOptions
from cmidd.pretrained.bank import Bank
from cmidd.recovery.class_statistics import ClassStatistics
from cmidd.recovery.starts import perturbed, start
from cmidd.recovery.statistics import Statistics, averaged, distance, kept, watched
from cmidd.recovery.steps import StepDraws, augmented, draw_step, lr_in
from cmikernels import ClassIndex, CMIRegularizer
from cmikernels.precision import computing

LOOK_EVERY = 100
"""Steps between two looks for NaN, for which the host waits for a GPU."""


class Losses(NamedTuple):
    """The terms of a step, without their weights, and their weighted sum."""

    total: Tensor
    classes: Tensor
    statistics: Tensor
    cmi: Tensor


class Task(NamedTuple):
    """What all batches of a recovery share."""

    dataset: Dataset
    options: RecoverOptions
    cmi: RecoverCMIOptions
    teachers: Sequence[nn.Module]
    bank: Bank | None
    of_classes: ClassStatistics | None
    device: torch.device

    @property
    def strategy(self) -> Strategy:
        """The augmentation."""
        return Strategy.parse(self.options.augmentation, mirror=self.dataset.mirror)

    def regularizers(self) -> list[CMIRegularizer]:
        """CMI in the bank, or in each teacher; nothing without it."""
        if not self.cmi.cmi_weight:
            return []
        given: list[Sequence[nn.Module]] = [[teacher] for teacher in self.teachers]
        return [
            CMIRegularizer(
                networks,
                chunk_size=self.cmi.cmi_chunk,
                layer=self.cmi.cmi_layer,
                seed=self.options.seed,
                precision=self.options.precision,
            )
            for networks in (given if self.bank is None else [self.bank])
        ]


class Batch:
    """The images of an item while they are made."""

    def __init__(self, task: Task, item: int, labels: Tensor, numbers: Tensor) -> None:
        """Make the first images, of these classes and with these numbers in their classes."""
        options, device = task.options, task.device
        self.task, self.item, self.labels = task, item, labels.to(device)
        self.strategy = task.strategy
        dtype = next(task.teachers[0].parameters()).dtype
        with computing(options.precision, device.type):
            first = start(task.dataset, labels, numbers, options, task.teachers, device).to(dtype)
        self.images = first.requires_grad_()
        self._first = first.detach().clone() if options.perturb_steps else None
        self._moved: dict[int, nn.Module] = {}
        # On the CPU, where making it waits for no GPU.
        self.index = ClassIndex(torch.unique(labels, return_inverse=True)[1]).to(device)
        self.regularizers = task.regularizers() if self.index.largest > 1 else []
        self._averages: dict[int, list[Statistics]] = {}
        self._of_classes: dict[int, list[Statistics]] = {}
        self.optimizer = torch.optim.Adam([self.images], lr=1.0, betas=(0.5, 0.9), eps=1e-8)
        black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
        ends = black_and_white.repeat(1, task.dataset.shape.channels, 1, 1)
        ends = normalise(ends, task.dataset.mean, task.dataset.std).to(first)
        self.least, self.most = ends[:1], ends[1:]

    def losses(self, step: int) -> Losses:
        """The terms of a step, at the images as they are."""
        drawn = draw_step(
            self.task.options, self.strategy, len(self.task.teachers), self.item, step
        )
        return self._losses(step, drawn)[0]

    def _losses(self, step: int, drawn: StepDraws) -> tuple[Losses, Sequence[Statistics]]:
        """The terms of a step, and the running averages with it."""
        options = self.task.options
        teacher = self._teacher(drawn.teacher)
        seen_images = augmented(self.images, options, self.strategy, drawn, step)
        with (
            watched(teacher) as seen,
            computing(options.precision, self.images.device.type, network=True),
        ):
            logits = teacher(seen_images)
        classes = F.cross_entropy(logits.to(seen_images.dtype), self.labels)
        zero = classes.new_zeros(())
        total, statistics, cmi = classes, zero, zero
        found = averaged(seen, self._averages.get(drawn.teacher), options.average)
        if options.bn_weight:
            statistics = self._distance(found, kept(seen), drawn.teacher)
            total = total + options.bn_weight * statistics
        if self.regularizers:
            regularizer = self.regularizers[0 if self.task.bank is not None else drawn.teacher]
            cmi = regularizer(self.images, self.index, step=self.item * options.iterations + step)
            total = total + self.task.cmi.cmi_weight * cmi
        return Losses(total, classes, statistics, cmi), found

    def _teacher(self, number: int) -> nn.Module:
        """A teacher, whose weights move when it is first drawn, where they are to."""
        options, teacher = self.task.options, self.task.teachers[number]
        if self._first is None:
            return teacher
        if number not in self._moved:
            self._moved[number] = perturbed(
                teacher, self._first, self.labels, options.perturb_steps, options.perturb_size
            )
        return self._moved[number]

    def _distance(
        self, found: Sequence[Statistics], wanted: Sequence[Statistics], teacher: int
    ) -> Tensor:
        options = self.task.options
        weights = {"first_weight": options.first_bn_weight, "var_weight": options.var_weight}
        share, of_classes = options.class_statistics, self.task.of_classes
        total = distance(found, wanted, **weights)
        if not share:
            return total
        assert of_classes is not None, "expected a file of class statistics"
        if teacher not in self._of_classes:
            self._of_classes[teacher] = of_classes.of(self.labels, teacher)
        return (1 - share) * total + share * distance(found, self._of_classes[teacher], **weights)

    def step(self, number: int) -> Losses:
        """Move the images once; the terms before that."""
        options = self.task.options
        drawn = draw_step(options, self.strategy, len(self.task.teachers), self.item, number)
        with computing(options.precision, self.images.device.type):
            losses, found = self._losses(number, drawn)
            (self.images.grad,) = torch.autograd.grad(losses.total, self.images)
        if options.average:
            self._averages[drawn.teacher] = [
                Statistics(*(each.detach() for each in statistics)) for statistics in found
            ]
        self.optimizer.param_groups[0]["lr"] = lr_in(options, number)
        self.optimizer.step()
        if number % LOOK_EVERY == 0 or number == options.iterations - 1:
            self._check_finite()  # Inf would be clamped
        with torch.no_grad():
            self.images.clamp_(self.least, self.most)
        return losses

    def _check_finite(self) -> None:
        if not self.images.isfinite().all():
            raise FloatingPointError(
                f"batch {self.item + 1}: its images are NaN or Inf; take a smaller lr, bn_weight "
                "or cmi_weight, and another folder"
            )

    def pixels(self) -> Tensor:
        """The images as they are kept: uint8 on the CPU."""
        self._check_finite()
        pixels = self.task.dataset.to_pixels(self.images.detach())
        return (pixels * 255).round().to(torch.uint8).cpu()
