"""Pictures that stay encoded until their rows are asked for.

A process holds what it uses: pictures that were decoded are kept as far as there is room for them,
and those for which there is none are decoded again whenever they are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from cmidd.datasets.pictures import Pictures, decode
from cmidd.datasets.pixels import ImageShape
from cmidd.datasets.streamed import KEEP_DECODED, Images, StreamedImages


@dataclass(frozen=True)
class Decoding:
    """How a loader makes images of pictures.

    Attributes:
        size: height and width to make them of; None: as they are.
        keep: bytes of decoded images to keep, of each part that is loaded.
        at_once: whether those that can be kept are decoded when they are loaded.

    """

    size: int | None = None
    keep: int = KEEP_DECODED
    at_once: bool = True

    def __call__(self, pictures: Pictures, shape: ImageShape, title: str) -> Images:
        """The images of pictures, whose bar is called `title`."""
        images = StreamedImages.of(Decoder(pictures, shape, self), len(pictures))
        if self.at_once and images.nbytes <= self.keep:
            return images.decoded(title)
        return images


class Decoder:
    """Decodes pictures, and keeps the first ones for which there is room."""

    def __init__(self, pictures: Pictures, shape: ImageShape, decoding: Decoding) -> None:
        self.pictures, self.shape, self.resize = pictures, shape, decoding.size is not None
        self.keep = decoding.keep
        self._room = min(len(pictures), decoding.keep // math.prod(shape))
        self._kept = torch.empty(0, *shape, dtype=torch.uint8)
        self._place = torch.full((len(pictures),), -1)  # of each picture among those kept
        self._count, self._lock = 0, Lock()

    def whole(self, rows: Tensor, title: str | None = None) -> Tensor:
        """The images of pictures (N,), of which nothing is kept."""
        return decode(self.pictures, rows, self.shape, resize=self.resize, title=title)

    def rows(self, rows: Tensor, *, keep: bool) -> Tensor:
        """The images of pictures (N,), some of them more than once; new ones are kept if asked."""
        with self._lock:
            places = self._place[rows]
            missing = torch.unique(rows[places < 0])
            if len(missing):
                if keep and not self._count:  # which takes memory as it is written to
                    self._kept = self._kept.new_empty(self._room, *self.shape)
                fresh = self.whole(missing)
                new = missing[: self._room - self._count if keep else 0]
                kept = slice(self._count, self._count + len(new))
                self._kept[kept] = fresh[: len(new)]
                self._count = kept.stop  # first, should it be interrupted here
                self._place[new] = torch.arange(kept.start, kept.stop)
                places = self._place[rows]
            if bool((places >= 0).all()):
                return self._kept[places]
            images = torch.empty(len(rows), *self.shape, dtype=torch.uint8)
            there = places >= 0
            images[there] = self._kept[places[there]]
            images[~there] = fresh[torch.searchsorted(missing, rows[~there])]
            return images
