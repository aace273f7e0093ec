"""CMI of a run: its options, and what it adds to every step.

    gradient <- gradient + d (weight x CMI) / d images

CMI is that of the synthetic images, as networks see them, in the feature space of trained networks.
These are drawn from the bank anew in every iteration and shared by the iteration's updates, as
published, or drawn for every update where the method says so. Classes need nothing of one another,
so ranks share them (`term.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from typing import TypeVar

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.device import precision_on
from cmidd.methods.base import Method
from cmidd.networks import cmi_images_per_chunk
from cmidd.options.cmi import CHUNK, CMIOptions
from cmidd.options.recover import RecoverCMIOptions
from cmidd.pretrained.bank import Bank
from cmidd.progress import progress
from cmidd.term import Term
from cmikernels import ClassIndex, CMIRegularizer

_Options = TypeVar("_Options", CMIOptions, RecoverCMIOptions)


def with_chunk(options: _Options, device: torch.device, size: int, *, is_used: bool) -> _Options:
    """Options with how many images go through a network at once, where that is not given.

    Without CMI it is as for a CPU, as the configurations of such runs always had it.
    """
    if options.cmi_chunk is not None:
        return options
    chunk = cmi_images_per_chunk(device, size) if is_used else CHUNK
    return replace(options, cmi_chunk=chunk)


class CMITerm(Term):
    """What CMI adds to the steps of one run; nothing without a bank or where it would be 0."""

    name = "cmi"

    def __init__(
        self,
        options: CMIOptions,
        dataset: Dataset,
        images: Tensor,
        labels: Tensor,
        method: Method,
        seed: int,
        *,
        weight: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """Open the bank.

        Args:
            options: of CMI.
            dataset: the real images, which the bank has to be made for.
            images: the stored images, on the device where the networks are to run.
            labels: of the stored images.
            method: whose view, first batch and draws of the bank it takes.
            seed: of the draws.
            weight: asked for the weight where the options have none and CMI is not 0.
            say: told what the user may not expect.
        """
        super().__init__(dataset, images, labels, method, options.cmi_on)
        self._options = options
        self._regularizer: CMIRegularizer | None = None
        if method.bank_draw not in ("iteration", "update"):
            raise ValueError(
                f"bank_draw: expected iteration or update of the method, got {method.bank_draw!r}"
            )
        if options.bank is None:
            return
        self.check_batch()
        with torch.no_grad():
            self._all = self._classes_of(images, self._labels_here)
        if self._all.largest <= 1 and options.cmi_centroids == "own":
            say(
                "CMI of one image per class is 0 whatever the image: left out; "
                "with cmi_centroids real it is not"
            )
            return
        self.weight = weight() if options.cmi_weight is None else options.cmi_weight
        bank = self._bank = Bank.load_for(dataset, options.bank, "bank", images.device)
        _check_against(options, bank)
        self.input_records["bank"] = bank.record
        self._regularizer = CMIRegularizer(
            bank,
            self.weight_of_mean,
            chunk_size=with_chunk(
                options, images.device, dataset.shape.height, is_used=True
            ).cmi_chunk,
            layer=options.cmi_layer,
            networks_per_step=options.cmi_networks,
            seed=seed,
            precision=precision_on(images.device, options.cmi_precision, "cmi_precision"),
        )
        self._classes = self._all
        if ranks.count() > 1:
            with torch.no_grad():
                mine = self._mine.cpu()
                self._classes = self._classes_of(images[self._mine], self._labels_here[mine])
        batch = method.first_batch(0)
        if options.cmi_on == "batch" and batch is not None and options.cmi_centroids == "own":
            self._say_who_is_alone(images, batch, say)

    def _say_who_is_alone(self, images: Tensor, batch: Tensor, say: Callable[[str], None]) -> None:
        seen_images = images.detach()[batch.to(images.device)]
        counts = self._classes_of(seen_images, self._labels_here[batch]).counts()
        alone, seen = int((counts == 1).sum()), int(counts.sum())
        if 2 * alone > seen:
            say(
                f"cmi_on batch: {alone} of the {seen} images of the first batch are the "
                "only ones of their class in it, and their CMI is 0; take a larger batch_syn, "
                "cmi_on all or cmi_centroids real"
            )

    def _classes_of(self, images: Tensor, labels: Tensor) -> ClassIndex:
        """The classes of what networks see of stored images, whose labels are on the CPU."""
        classes = ClassIndex(self.seen(images, labels)[1], self._dataset.num_classes)
        return classes.to(images.device)  # where making it would wait for a GPU

    @property
    def needs_real_means(self) -> bool:
        """Whether the means of real images are asked for and not measured yet."""
        return (
            self._regularizer is not None
            and self._options.cmi_centroids == "real"
            and self._regularizer.centroids is None
        )

    @property
    def is_zero_so_far(self) -> bool:
        """Whether it is 0 until the means of real images are there."""
        return self.needs_real_means and self._all.largest <= 1

    def measure_real_means(self, say: Callable[[str], None]) -> None:
        """Take the class means of the real images, if they are asked for.

        That is a pass over them for as many networks as stay on the device.
        """
        if self._regularizer is None or not self.needs_real_means:
            return
        say(f"class centroids of the real images, by {len(self._regularizer.networks)} networks")
        dataset, train = self._dataset, self._dataset.train
        if missing := (train.offsets.diff() == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"cmi_centroids: real needs training images of every class, got none of {missing}"
            )
        classes = ranks.share_of(dataset.num_classes)
        if ranks.count() > 1:  # a rank needs those of its classes, of which it has one at least
            classes = classes or range(1)
            first, last = train.offsets[[classes.start, classes.stop]].tolist()
            train = train.chosen(torch.arange(first, last))
        bank, parts = self._bank, []
        for first in range(0, len(bank), bank.most):  # so that each network is read once
            batches = progress(
                dataset.batches(train, self._labels.device), desc="real images", unit="batch"
            )
            some = copy.copy(self._regularizer)
            some.networks = bank[first : first + bank.most]
            parts.append(
                some.real_centroids(
                    ((images, labels - classes.start) for images, labels in batches), len(classes)
                )
            )
        mine = torch.cat(parts)
        centroids = mine.new_zeros(len(mine), dataset.num_classes, mine.shape[-1])
        centroids[:, classes.start : classes.stop] = mine
        self._regularizer.centroids = centroids

    def add(
        self, images: Tensor, gradient: Tensor, iteration: int, update: int = 0, *, logged: bool
    ) -> Tensor:
        """As `Term.add`; the weighted value is that of the last iteration with CMI if `logged`."""
        since = iteration % self._options.cmi_every  # iterations since the last with CMI
        if self._regularizer is None or (since and not logged):
            return torch.zeros((), device=images.device)
        with torch.set_grad_enabled(not since):
            mine, of_all = self.rows_of(iteration)
            of_batch = mine is not self._mine
            is_all = not of_batch and len(mine) == len(images)
            seen, labels = self.seen(images if is_all else images[mine], self._labels[mine])
            classes = self._classes
            if of_batch:
                classes = ClassIndex(labels, self._dataset.num_classes)
            if self._regularizer.centroids is None and classes.largest <= 1:
                return torch.zeros((), device=images.device)
            step = iteration - since
            if self._method.bank_draw == "update":
                step = step * self._method.updates + update
            # Without the last value, the curve would be 0 where there is no CMI.
            value = self._regularizer(seen.detach() if since else seen, classes, step=step)
            if len(mine) != of_all:
                value = value * (len(mine) / of_all)
        if value.requires_grad:
            gradient += torch.autograd.grad(value, images)[0]
        return value.detach()


def _check_against(options: CMIOptions, bank: Bank) -> None:
    """Raise where a bank has not what the options ask it for."""
    if options.cmi_networks > len(bank):
        raise ValueError(
            f"cmi_networks: expected at most the {len(bank)} networks of {options.bank}, got "
            f"{options.cmi_networks}"
        )
    layers = ["features", "logits", *(name for name, _ in bank[0].named_modules() if name)]
    if options.cmi_layer not in layers:
        close = get_close_matches(options.cmi_layer, layers, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"cmi_layer: expected features, logits or a layer of the networks of {options.bank} "
            f"(such as {layers[-1]}), got {options.cmi_layer}{hint}"
        )
