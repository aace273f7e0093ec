"""Classes and ranks: what a rank has of them, what is drawn for each, and how they stand in rows.

Each class has its own stream, named by its number, so a rank that owns some of the classes draws
for them what any other would.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Draw, Strategy, draw
from cmidd.datasets import Dataset, ImageSet
from cmidd.datasets.streamed import Images, rows_of
from cmidd.seeds import generator


@dataclass(frozen=True, eq=False)
class ClassShare:
    """The classes that are this rank's, their synthetic images and their real ones."""

    classes: range
    rows: slice  # of the synthetic images
    labels: Tensor  # of these, on the CPU
    counts: list[int]  # of these, in each class
    first_real: int  # row of the first real image

    @classmethod
    def of(cls, dataset: Dataset, labels: Tensor) -> ClassShare:
        """The share of this rank in images whose labels are `labels`, ascending."""
        classes = ranks.share_of(dataset.num_classes)
        if ranks.count() > dataset.num_classes:
            raise ValueError(
                f"ranks: expected at most one for each of the {dataset.num_classes} classes of "
                f"{dataset.name}, got {ranks.count()}"
            )
        counts = torch.bincount(labels.cpu(), minlength=dataset.num_classes)
        offsets = [0, *counts.cumsum(0).tolist()]
        rows = slice(offsets[classes.start], offsets[classes.stop])
        mine = counts[classes.start : classes.stop].tolist()
        first_real = int(dataset.train.offsets[classes.start])
        return cls(classes, rows, labels.cpu()[rows], mine, first_real)

    def real_images(self, real: ImageSet, device: torch.device) -> Images:
        """Those of its classes, of which `first_real` is the first."""
        return rows_of(real.source, self._real_rows(real)).to(device)

    def real_images_of_all(self, real: ImageSet, device: torch.device) -> tuple[Images, Images]:
        """The same as a part of all images, and these."""
        every = real.source.to(device)
        return rows_of(every, self._real_rows(real)), every

    def _real_rows(self, real: ImageSet) -> slice:
        return slice(self.first_real, int(real.offsets[self.classes.stop]))

    def whole(self, gradient: Tensor, images: Tensor) -> Tensor:
        """The gradient of its images as a share in that of all `images`: 0 for the others."""
        if len(gradient) == len(images):
            return gradient
        share = torch.zeros_like(images)
        share[self.rows] = gradient
        return share


def draw_real_rows(real: ImageSet, classes: range, count: int, *words: int | str) -> list[Tensor]:
    """Row numbers of `count` different real images of each class, or of all that it has."""
    offsets = real.offsets.tolist()
    return [
        offsets[c]
        + torch.randperm(offsets[c + 1] - offsets[c], generator=generator(*words, c))[:count]
        for c in classes
    ]


def draw_for_classes(strategy: Strategy, classes: range, *words: int | str) -> Draw:
    """One augmentation for each class."""
    of_classes = [draw(strategy, 1, generator(*words, c)) for c in classes]
    return Draw(
        torch.cat([each.operations for each in of_classes]),
        torch.cat([each.numbers for each in of_classes]),
    )


def class_means(features: Tensor, counts: list[int]) -> Tensor:
    """Mean row of each class, `(C, M)`, of features `(N, M)` that stand class by class."""
    if len(set(counts)) == 1:
        return features.view(len(counts), counts[0], -1).mean(dim=1)
    return torch.stack([part.mean(dim=0) for part in torch.split(features, counts)])


def whole_classes(counts: list[int], most: int) -> list[tuple[slice, slice]]:
    """Classes and their rows, cut where a chunk would exceed `most`; a larger class is alone."""
    chunks: list[tuple[slice, slice]] = []
    first_class = first_row = row = 0
    for c, count in enumerate(counts):
        if row + count - first_row > most and c > first_class:
            chunks.append((slice(first_class, c), slice(first_row, row)))
            first_class, first_row = c, row
        row += count
    return [*chunks, (slice(first_class, len(counts)), slice(first_row, row))]
