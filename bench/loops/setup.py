"""What the loops of all methods work on, and a step of each: ours and the plain one.

A step is one update of the images, with all that the driver does for it: the method's loss and
gradient, CMI where there are several images of a class, and SGD. Its length is 0, so that every
step sees the same images. All calls into the driver are in this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from bench.harness.memory import total_bytes
from bench.plain.cmi import PlainCMI
from bench.plain.inputs import (
    random_dataset,
    save_each,
    untrained_bank,
    write_bank,
    write_expert,
)
from bench.plain.rivals import RIVALS
from cmidd.datasets import Dataset
from cmidd.device import usable_device
from cmidd.methods import fill_in_published, method_entry
from cmidd.networks import Network, cmi_images_per_chunk
from cmidd.options.distill import DistillOptions
from cmidd.seeds import generator
from cmikernels import ClassIndex, CMIRegularizer

SEED = 0

_WEIGHT = 2000.0  # of CMI, as published for CIFAR-10 at ipc 50

Result = tuple[Tensor, Tensor]
"""A loss, CMI included, and its gradient with respect to the images."""


@dataclass(frozen=True)
class Sizes:
    """How large the loop is; the default is that of most published results."""

    classes: int = 10
    batch_real: int = 256
    pixels: int = 32
    network: str = "convnet"
    bank: str = "resnet18"
    student_steps: int = 5  # of MTT, in what is timed
    peaks: tuple[int, ...] = (1, 5, 10, 50)  # those whose memory is measured

    def dataset(self) -> Dataset:
        """Real images to draw batches of."""
        return random_dataset([2 * self.batch_real] * self.classes, self.pixels)


@dataclass(frozen=True)
class Loop:
    """Steps in an iteration, and a step by the iteration and its number in it."""

    updates: int
    step: Callable[[int, int], Result]


def has_cmi(method: str) -> bool:
    """Whether CMI is a part of the method's steps here."""
    rival = RIVALS.get(method)
    return rival is None or rival.with_cmi


def option_names(method: str) -> set[str]:
    """What a method can be told."""
    return {field.name for field in fields(method_entry(method).options)}


class Setup:
    """The problem; the files that loops read are written into `folder`."""

    def __init__(
        self,
        method: str,
        sizes: Sizes,
        ipc: int,
        device: str,
        folder: Path,
        dataset: Dataset | None = None,
    ) -> None:
        self.method, self.sizes, self.ipc = method, sizes, ipc
        self.device, self.folder = usable_device(device), folder
        self.rival = RIVALS.get(method)
        self.with_cmi = has_cmi(method)
        self.dataset = dataset or sizes.dataset()
        self.labels = torch.arange(sizes.classes).repeat_interleave(ipc)
        shape = (len(self.labels), *self.dataset.shape)
        self.images = torch.randn(shape, generator=generator("images")).to(self.device)
        self.images.requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=0.0, momentum=0.5)

    def our_loop(self, cmi_precision: str | None = None, **changes: Any) -> Loop:
        """The driver's, with some of the method's options changed."""
        regularizer = self.regularizer(cmi_precision)
        method = method_entry(self.method).make(
            self.dataset, self.labels, self.options(**changes), SEED, self.device
        )

        def step(iteration: int, update: int) -> Result:
            with record_function("draws"):
                draws = method.draw(iteration, update)
            loss, gradient = method.loss_and_gradient(self.images, draws)
            if self.with_cmi and self.ipc > 1:  # of one image per class it is always 0
                with record_function("cmi"):
                    value = regularizer(self.images, self._classes, step=iteration)
                    loss = loss + value.detach()
                    gradient += torch.autograd.grad(value, self.images)[0]
            self._move_images(gradient)
            return loss, gradient

        return Loop(method.updates, step)

    def plain_loop(self, **changes: Any) -> Loop | None:
        """The plain one; None if there is none, or none that fits the memory."""
        if self.rival is None or not self.rival_fits():
            return None
        cmi = None
        if self.with_cmi:
            files = save_each(self._bank(), self.folder)
            cmi = PlainCMI(files, self.sizes.bank, _WEIGHT, self.regularizer().draw)
        given = (self.dataset, self.labels, self.options(**changes), SEED, self.device)
        rival, updates = self.rival.make(*given, cmi=cmi)

        def step(iteration: int, update: int) -> Result:
            loss, gradient = rival(self.images, iteration, update)
            self._move_images(gradient)
            return loss, gradient

        return Loop(updates, step)

    def rival_fits(self) -> bool:
        """Whether what the plain loop keeps takes at most half of the memory there is."""
        if self.rival is None or self.rival.kept_bytes is None:
            return True
        kept = self.rival.kept_bytes(self.images.shape, self.sizes.student_steps)
        return 2 * kept < total_bytes(self.device)

    def regularizer(self, precision: str | None = None) -> CMIRegularizer:
        """CMI as our loops take it."""
        chunk = cmi_images_per_chunk(self.device, self.sizes.pixels)
        return CMIRegularizer(
            self._resident_bank, _WEIGHT, chunk_size=chunk, seed=SEED, precision=precision
        )

    @cached_property
    def _resident_bank(self) -> list[Network]:
        return [network.to(self.device) for network in self._bank()]

    @cached_property
    def _classes(self) -> ClassIndex:
        return ClassIndex(self.labels.to(self.device), self.sizes.classes)

    def _bank(self) -> list[Network]:
        return untrained_bank(self.sizes.bank, self.sizes.pixels, self.sizes.classes)

    def bank_file(self, network: str) -> Path:
        """A bank of untrained networks, which is written when it is first asked for."""
        path = self.folder / f"bank-{network.partition(':')[0]}.safetensors"
        if not path.exists():
            write_bank(path, self.dataset, network)
        return path

    def options(self, **changes: Any) -> Any:
        """Of the method: sizes, files of networks that it needs, and what is published."""
        sizes, names = self.sizes, option_names(self.method)
        given: dict[str, Any] = {name: getattr(sizes, name) for name in names & _SIZES_OF_METHODS}
        if "experts" in names:
            path = self.folder / "experts.safetensors"
            write_expert(path, self.dataset, sizes.network)
            given |= {"experts": path, "expert_epochs": 1, "max_start_epoch": 1}
        if "centre_bank" in names:
            given["centre_bank"] = self.bank_file(sizes.bank)
        if "matching_bank" in names:
            given["matching_bank"] = self.bank_file(sizes.network)
        options = method_entry(self.method).options(**{**given, **changes})
        loop = DistillOptions(self.ipc)
        return fill_in_published(self.method, self.dataset, self.ipc, loop, options)[1]

    def _move_images(self, gradient: Tensor) -> None:
        with record_function("images_step"):
            self.images.grad = gradient
            self.optimizer.step()


_SIZES_OF_METHODS = {"network", "batch_real", "student_steps"}
