"""The regulariser of a run: its options, its weight, and what it adds to every step.

    gradient <- gradient + d (weight x CMI) / d images

CMI is that of the synthetic images in the feature space of trained networks, drawn from the bank
anew in every iteration and shared by the iteration's updates, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd.datasets import Dataset
from cmidd.methods import cmi_weight
from cmidd.pretrained.bank import Bank
from cmikernels import ClassIndex, CMIRegularizer


@dataclass(frozen=True)
class CMIOptions:
    """The regulariser.

    Args:
        bank: file of trained networks, made by cmidd pretrain; without one there is no CMI
        cmi_weight: its weight; default the published one for method, dataset and ipc
        cmi_layer: features (the embedding), logits, or the name of a layer
        cmi_centroids: compare images with the mean of their own class, or with that of real data
        cmi_on: all images, or batch, the first one that a method which draws batches takes
        cmi_networks: networks a step averages over
        cmi_every: apply it in every k-th iteration only (another algorithm than the published one)
        cmi_chunk: images that go through a network at once; memory grows with it, not with ipc
    """

    bank: Path | None = None
    cmi_weight: float | None = None
    cmi_layer: str = "features"
    cmi_centroids: str = "own"
    cmi_on: str = "all"
    cmi_networks: int = 1
    cmi_every: int = 1
    cmi_chunk: int = 50


class Regularization:
    """What CMI adds to the steps of one run; nothing where it is not asked for or would be 0."""

    def __init__(
        self,
        method: str,
        dataset: Dataset,
        labels: Tensor,
        seed: int,
        options: CMIOptions,
        device: torch.device,
        say: Callable[[str], None],
        batch: Tensor | None,
    ) -> None:
        """Load the bank for images whose labels are `labels`, as many of each class.

        `batch`: rows of the method's first batch, if it has such.
        """
        self.weight, self._every = 0.0, options.cmi_every
        self.made_with: dict[str, Any] = {}
        self._on_batch = options.cmi_on == "batch"
        self._labels = labels.to(device)
        self._classes = ClassIndex(self._labels, dataset.num_classes)
        self._regularizer: CMIRegularizer | None = None
        ipc = len(labels) // dataset.num_classes
        if options.bank is None:
            if options != CMIOptions():
                raise ValueError(
                    "bank: expected the file of a bank, as other options of CMI are given"
                )
            return
        if options.cmi_centroids not in ("own", "real"):
            raise ValueError(f"cmi_centroids: expected own or real, got {options.cmi_centroids!r}")
        if options.cmi_on not in ("all", "batch"):
            raise ValueError(f"cmi_on: expected all or batch, got {options.cmi_on!r}")
        if options.cmi_on == "batch" and batch is None:
            raise ValueError(
                "cmi_on: batch is for methods that draw batches of the images, fewer than all (as "
                "batch_syn says); got all at once"
            )
        if ipc == 1 and options.cmi_centroids == "own":
            say(
                "CMI of one image per class is 0 whatever the image: left out; "
                "with cmi_centroids real it is not"
            )
            return
        self.weight = _weight(method, dataset, ipc, options, say)
        bank = Bank.load(options.bank, device)
        dataset.check_made_for(bank.record, f"bank: {options.bank}")
        self.made_with["bank"] = bank.record
        self._regularizer = CMIRegularizer(
            bank,
            self.weight,
            chunk_size=options.cmi_chunk,
            layer=options.cmi_layer,
            networks_per_step=options.cmi_networks,
            seed=seed,
        )
        if self._on_batch and batch is not None and options.cmi_centroids == "own":
            counts = torch.bincount(labels[batch.to(labels.device)])
            alone = int((counts == 1).sum())
            if 2 * alone > len(batch):
                say(
                    f"cmi_on batch: {alone} of the {len(batch)} images of the first batch are the "
                    "only ones of their class in it, and their CMI is 0; take a larger batch_syn, "
                    "cmi_on all or cmi_centroids real"
                )
        if options.cmi_centroids == "real":
            say(f"class centroids of the real images, by {len(bank)} networks")
            batches = tqdm(dataset.batches(dataset.train, device), "real images", unit="batch")
            self._regularizer.centroids = self._regularizer.real_centroids(
                batches, dataset.num_classes
            )

    def add(
        self,
        images: Tensor,
        gradient: Tensor,
        iteration: int,
        rows: Tensor | None,
        *,
        logged: bool,
    ) -> Tensor:
        """Add to the gradient; the weighted value, of the last iteration with CMI if `logged`.

        Args:
            images: leaf (N, ch, H, W).
            gradient: of the method, changed in place.
            iteration: whose networks are taken.
            rows: of the iteration's batch; None: it has all images.
            logged: whether the value is looked at.
        """
        since = iteration % self._every  # iterations since the last with CMI
        if self._regularizer is None or (since and not logged):
            return torch.zeros((), device=images.device)
        chosen, classes = images, self._classes
        if self._on_batch and rows is not None:
            rows = rows.to(images.device)
            chosen = images[rows]
            classes = ClassIndex(self._labels[rows], classes.num_classes)
            if self._regularizer.centroids is None and classes.largest <= 1:
                return torch.zeros((), device=images.device)
        if since:  # for the log: without it the curve is 0 here
            return self._regularizer(chosen.detach(), classes, step=iteration - since)
        value = self._regularizer(chosen, classes, step=iteration)
        if value.requires_grad:
            gradient += torch.autograd.grad(value, images)[0]
        return value.detach()


def _weight(
    method: str, dataset: Dataset, ipc: int, options: CMIOptions, say: Callable[[str], None]
) -> float:
    """The weight that was given, or the one that is known."""
    if options.cmi_weight is not None:
        return options.cmi_weight
    chosen = cmi_weight(method, dataset.name, ipc)
    usual = options.cmi_layer == "features" and options.cmi_centroids == "own"
    note = "" if usual else ", for embeddings and the images' own means; try others"
    say(f"weight of CMI: {chosen.value:g} ({chosen.origin}{note})")
    return chosen.value
