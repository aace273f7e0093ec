"""Which images are made together: the items of a recovery."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batches:
    """Batches of at most `size` images of `num_classes` classes with `ipc` images each.

    In the order "class" a batch has as many whole classes as fit, one after another; a class that
    is larger than a batch is cut into pieces. In the order "image" a batch has one image of each of
    as many classes as fit.
    """

    num_classes: int
    ipc: int
    size: int
    order: str

    @property
    def classes_together(self) -> int:
        """Classes of which a batch has images."""
        if self.order == "image":
            return min(self.size, self.num_classes)
        return min(max(1, self.size // self.ipc), self.num_classes)

    @property
    def pieces(self) -> int:
        """Batches that share the images of a class."""
        return self.ipc if self.order == "image" else -(-self.ipc // self.size)

    @property
    def of_each(self) -> int:
        """Images of a class that a batch has, at most."""
        return -(-self.ipc // self.pieces)

    @property
    def largest(self) -> int:
        """Images of the largest batch."""
        return self.classes_together * self.of_each

    def __len__(self) -> int:
        """How many batches there are."""
        return self.pieces * -(-self.num_classes // self.classes_together)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """The classes of a batch's images, ascending, and the number of each in its class."""
        groups = len(self) // self.pieces
        if self.order == "image":
            piece, group = divmod(item, groups)
        else:
            group, piece = divmod(item, self.pieces)
        first = group * self.classes_together
        classes = torch.arange(first, min(first + self.classes_together, self.num_classes))
        bounds = [self.ipc * p // self.pieces for p in (piece, piece + 1)]
        numbers = torch.arange(*bounds)
        return classes.repeat_interleave(len(numbers)), numbers.repeat(len(classes))

    def in_words(self) -> str:
        """For the user."""
        text = f"{_count(len(self), 'batch')} of up to {_count(self.largest, 'image')}"
        if self.pieces > 1 and self.order == "class":
            return f"{text}, {self.pieces} for each class of {self.ipc}"
        return f"{text}: {_count(self.classes_together, 'class')} with {self.of_each} of each"


def _count(number: int, word: str) -> str:
    """So many of a thing."""
    several = f"{word}es" if word.endswith(("s", "ch")) else f"{word}s"
    return f"{number} {word if number == 1 else several}"
