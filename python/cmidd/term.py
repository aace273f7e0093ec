"""What a run may add to every step of its method: a weight times a mean over the images.

    gradient <- gradient + d (weight x mean over images) / d images

The images are the synthetic ones, as networks see them: all, or those of the first batch that an
iteration of the method takes. Each is in the mean by what it is, so ranks share them by classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.methods.base import Method


class Term(ABC):
    """A term of one run; it adds nothing while its weight is 0."""

    name: ClassVar[str]
    """What the log calls it. The option of its weight is NAME_weight."""

    def __init__(
        self, dataset: Dataset, images: Tensor, labels: Tensor, method: Method, on: str
    ) -> None:
        """Note whose images these are.

        Args:
            dataset: the real images.
            images: the stored images, on the device where networks are to run.
            labels: of the stored images.
            method: whose view and first batch it takes.
            on: "all" images, or those of the first "batch".
        """
        self.weight = 0.0
        self.input_records: dict[str, Any] = {}
        self._dataset, self._method, self._on = dataset, method, on
        self._labels_here, self._labels = labels.cpu(), labels.to(images.device)
        self._mine = self._of_rank(torch.arange(len(labels)))

    @property
    def weight_of_mean(self) -> float:
        """The factor of the mean over images, which the method may multiply."""
        return self.weight * self._method.term_factor

    @abstractmethod
    def add(
        self, images: Tensor, gradient: Tensor, iteration: int, update: int = 0, *, logged: bool
    ) -> Tensor:
        """Add to the gradient; the weighted value.

        Both are this rank's shares.

        Args:
            images: leaf (N, ch, H, W).
            gradient: of the method, changed in place.
            iteration: of the run.
            update: of the iteration.
            logged: whether the value is looked at.
        """

    def check_batch(self) -> None:
        """Raise where batches are asked for that the method does not draw."""
        if self._on == "batch" and self._method.first_batch(0) is None:
            raise ValueError(
                f"{self.name}_on: batch is for methods that draw batches of the images, fewer than "
                "all (as batch_syn says); got all at once"
            )

    def rows_of(self, iteration: int) -> tuple[Tensor, int]:
        """Which images of an iteration are this rank's, and how many it has on all ranks."""
        batch = self._method.first_batch(iteration) if self._on == "batch" else None
        if batch is None:
            return self._mine, len(self._labels)
        return self._of_rank(batch), len(batch)

    def _of_rank(self, rows: Tensor) -> Tensor:
        """Those of some images whose classes are this rank's; `rows` are on the CPU."""
        classes, labels = ranks.share_of(self._dataset.num_classes), self._labels_here[rows]
        mine = rows[(labels >= classes.start) & (labels < classes.stop)]
        return mine.to(self._labels.device)

    def seen(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What networks see of stored images, and its labels."""
        return (images, labels) if self._method.view is None else self._method.view(images, labels)
