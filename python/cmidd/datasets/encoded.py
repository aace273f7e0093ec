"""Pictures that stay encoded until their rows are asked for.

A process holds what it uses: pictures that were decoded are kept as far as there is room for them,
and those for which there is none are decoded again whenever they are asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from cmidd.datasets.pictures import Pictures, decode
from cmidd.datasets.pixels import ImageShape

KEEP_DECODED = 4 * 2**30
"""Bytes of decoded images to keep, if nothing else is said."""


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
        images = EncodedImages.of(pictures, shape, self)
        if self.at_once and images.nbytes <= self.keep:
            return images.decoded(title)
        return images


class _Decoder:
    """Decodes pictures, and keeps the first ones for which there is room."""

    def __init__(self, pictures: Pictures, shape: ImageShape, decoding: Decoding) -> None:
        self.pictures, self.shape, self.resize = pictures, shape, decoding.size is not None
        self.keep = decoding.keep
        self._room = min(len(pictures), decoding.keep // _bytes_of(shape))
        self._kept = torch.empty(0, *shape, dtype=torch.uint8)
        self._place = torch.full((len(pictures),), -1)  # of each picture among those kept
        self._count, self._lock = 0, Lock()

    def decode(self, rows: Tensor, title: str | None = None) -> Tensor:
        """The images of pictures (N,), of which nothing is kept."""
        return decode(self.pictures, rows, self.shape, resize=self.resize, title=title)

    def __call__(self, rows: Tensor, keep: bool) -> Tensor:
        """The images of pictures (N,), some of them more than once; new ones are kept if asked."""
        with self._lock:
            places = self._place[rows]
            missing = torch.unique(rows[places < 0])
            if len(missing):
                if keep and not self._count:  # which takes memory as it is written to
                    self._kept = self._kept.new_empty(self._room, *self.shape)
                fresh = self.decode(missing)
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


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Images (N, channels, height, width) that are indexed by rows, as a tensor is.

    Attributes:
        device: where those asked for are put.

    """

    device: torch.device
    _decoder: _Decoder
    _rows: Tensor  # (N,) of the pictures
    _seen: Callable[[Tensor], Tensor] | None = None  # what is made of images that are asked for
    _keeps: bool = True  # what is decoded, as far as there is room

    @classmethod
    def of(cls, pictures: Pictures, shape: ImageShape, decoding: Decoding) -> EncodedImages:
        """The uint8 images of pictures."""
        decoder = _Decoder(pictures, shape, decoding)
        return cls(torch.device("cpu"), decoder, torch.arange(len(pictures)))

    @property
    def shape(self) -> torch.Size:
        """As of the tensor of all of them."""
        return torch.Size((len(self._rows), *self._decoder.shape))

    @property
    def nbytes(self) -> int:
        """Of the tensor of all of them as uint8."""
        return len(self._rows) * _bytes_of(self._decoder.shape)

    @property
    def keep(self) -> int:
        """Bytes of them that are kept once they are decoded."""
        return self._decoder.keep

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The images of some rows."""
        wanted = self._rows[rows if isinstance(rows, slice) else rows.cpu()]
        images = self._decoder(wanted.flatten(), self._keeps).to(self.device)
        if self._seen is not None:
            images = self._seen(images)
        return images.view(*wanted.shape, *images.shape[1:])

    def decoded(self, title: str) -> Tensor:
        """All of them, of which none is kept here; a bar is called `title`."""
        assert self._seen is None, "expected images as they are"
        return self._decoder.decode(self._rows, title)

    def of_rows(self, rows: Tensor | slice) -> EncodedImages:
        """Those of some rows, encoded as they are."""
        return replace(self, _rows=self._rows[rows])

    def to(self, device: torch.device) -> Images:
        """On the device if they can be kept there, else put there when they are asked for."""
        if device.type != "cpu" and self.nbytes <= self.keep:
            return self.decoded("real images").to(device)
        return replace(self, device=device)

    def seen_by(self, seen: Callable[[Tensor], Tensor]) -> EncodedImages:
        """The same, of which a function makes what is given for rows."""
        return replace(self, _seen=seen)


Images = Tensor | EncodedImages
"""Images by rows, decoded or not."""


def rows_of(images: Images, rows: Tensor | slice) -> Images:
    """Those of some rows, which stay encoded if they are."""
    return images.of_rows(rows) if isinstance(images, EncodedImages) else images[rows]


def read_once(images: Images) -> Images:
    """The same, of which nothing more is kept; what is kept already is not decoded again."""
    return replace(images, _keeps=False) if isinstance(images, EncodedImages) else images


def check_fit(images: Images, what: str) -> None:
    """Raise unless all of them may be decoded at once, which `what` needs."""
    if isinstance(images, EncodedImages) and images.nbytes > images.keep:
        need = math.ceil(images.nbytes / 2**30 * 1000) / 1000
        raise ValueError(
            f"keep_decoded: {what} needs all of {len(images):,} images at once; expected at least "
            f"{need:.3f} GiB for them, got {images.keep / 2**30:.3g}"
        )


def whole(images: Images, what: str) -> Tensor:
    """All of them, for `what`, which needs them at once."""
    check_fit(images, what)
    return images.decoded("real images") if isinstance(images, EncodedImages) else images


def taken(images: Images, rows: Tensor) -> Tensor:
    """Rows that are told on the CPU, of images on any device."""
    return images[rows] if isinstance(images, EncodedImages) else images[rows.to(images.device)]


def one_after_another(images: Images, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Rows of images, batch by batch; a batch is decoded while the one before it is used."""
    if not isinstance(images, EncodedImages):
        for rows in batches:
            yield taken(images, rows)
        return
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[Tensor]] = deque()
        for rows in batches:
            coming.append(pool.submit(images.__getitem__, rows))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _bytes_of(shape: ImageShape) -> int:
    return shape.channels * shape.height * shape.width
