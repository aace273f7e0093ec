"""What is drawn for classes: each class has its own stream, named by its number.

A process that owns some of the classes draws for them what any other would.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmidd.augment import Draw, Strategy, draw
from cmidd.datasets import ImageSet
from cmidd.seeds import generator


def draw_real_rows(real: ImageSet, count: int, *words: int | str) -> list[Tensor]:
    """Row numbers of `count` different real images of each class, or of all that it has."""
    offsets = real.offsets.tolist()
    return [
        offsets[c]
        + torch.randperm(offsets[c + 1] - offsets[c], generator=generator(*words, c))[:count]
        for c in range(real.num_classes)
    ]


def draw_for_classes(strategy: Strategy, num_classes: int, *words: int | str) -> Draw:
    """One augmentation for each class."""
    of_classes = [draw(strategy, 1, generator(*words, c)) for c in range(num_classes)]
    return Draw(
        torch.cat([each.operations for each in of_classes]),
        torch.cat([each.numbers for each in of_classes]),
    )
