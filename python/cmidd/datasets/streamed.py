"""Images by rows that are made when they are asked for, so that memory follows a batch.

They are made of a source: pictures that stay encoded (`encoded.py`), or pixels, which may be mapped
from a file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from cmidd.datasets.pixels import ImageShape

KEEP_DECODED = 4 * 2**30
"""Bytes of images to keep as uint8 beside their source, if nothing else is said."""
SMALL = 2**27
"""Bytes of images as networks see them that are made at once: batches of them take less work."""
_NUMBERS_OF_A_PIECE = 2**21


class Source(Protocol):
    """What uint8 images are made of."""

    @property
    def shape(self) -> ImageShape:
        """Of each image."""

    @property
    def keep(self) -> int:
        """Bytes of images to keep beside the source once they are made."""

    def rows(self, rows: Tensor, *, keep: bool) -> Tensor:
        """The images of rows (N,) on the CPU; new ones may be kept if `keep` says so."""

    def whole(self, rows: Tensor, title: str) -> Tensor:
        """The images of rows (N,), of which nothing is kept; a bar is called `title`."""


class Pixels:
    """Pixels (N, channels, height, width) uint8, in memory or mapped from a file.

    Args:
        pixels: all of them.
        keep: bytes of them to keep on another device.
        in_memory: whether none of them is read from a file when it is asked for.

    """

    def __init__(
        self, pixels: Tensor, keep: int = KEEP_DECODED, *, in_memory: bool = False
    ) -> None:
        if pixels.dtype != torch.uint8:
            raise TypeError(f"pixels: expected uint8, got {pixels.dtype}")
        self._pixels, self.keep, self.in_memory = pixels, keep, in_memory
        self.shape = ImageShape(*pixels.shape[1:])

    def are_on(self, device: torch.device) -> bool:
        """Whether the pixels are on a device."""
        there = self._pixels.device
        return there.type == device.type and device.index in (None, there.index)

    def rows(self, rows: Tensor, *, keep: bool = False) -> Tensor:  # noqa: ARG002
        """Copies of rows (N,), where the pixels are."""
        # Whole rows at once, for which indexing takes six times as long on a CPU.
        return self._pixels.index_select(0, rows.to(self._pixels.device))

    def whole(self, rows: Tensor, title: str) -> Tensor:  # noqa: ARG002
        """Copies of rows (N,), or the pixels themselves where those are all of them in order."""
        every = torch.arange(len(self._pixels), device=rows.device)
        return self._pixels if torch.equal(rows, every) else self.rows(rows)


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images (N, channels, height, width) that are indexed by rows, as a tensor is.

    Attributes:
        device: where those asked for are put.

    """

    device: torch.device
    _source: Source
    _rows: Tensor  # (N,) of the source, on the CPU or where the source is
    _seen: Callable[[Tensor], Tensor] | None = None  # what is made of images that are asked for
    _keeps: bool = True  # what is made, as far as there is room

    @classmethod
    def of(cls, source: Source, count: int) -> StreamedImages:
        """The uint8 images of all `count` rows of a source."""
        return cls(torch.device("cpu"), source, torch.arange(count))

    @classmethod
    def of_pixels(cls, pixels: Tensor) -> StreamedImages:
        """The uint8 images of a tensor in memory, on its device."""
        rows = torch.arange(len(pixels), device=pixels.device)  # so that a batch copies none
        return cls(pixels.device, Pixels(pixels, pixels.nbytes, in_memory=True), rows)

    @property
    def shape(self) -> torch.Size:
        """As of the tensor of all of them."""
        return torch.Size((len(self._rows), *self._source.shape))

    @property
    def dtype(self) -> torch.dtype:
        """As of the tensor of all of them."""
        return self[:0].dtype

    @property
    def nbytes(self) -> int:
        """Of the tensor of all of them as uint8."""
        return self.shape.numel()

    @property
    def keep(self) -> int:
        """Bytes of them that are kept once they are made."""
        return self._source.keep

    @property
    def are_at_hand(self) -> bool:
        """Whether their pixels are in the memory of the device where images are put."""
        source = self._source
        return isinstance(source, Pixels) and source.in_memory and source.are_on(self.device)

    @property
    def rows_on(self) -> torch.device:
        """Where rows that are asked for should be."""
        return self._rows.device

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The images of some rows."""
        wanted = self._rows[rows if isinstance(rows, slice) else rows.to(self._rows.device)]
        images = self._source.rows(wanted.flatten(), keep=self._keeps).to(self.device)
        if self._seen is not None:
            images = self._seen(images)
        return images.view(*wanted.shape, *images.shape[1:])

    def pieces(self) -> Iterator[Tensor]:
        """All of them in order, some at a time."""
        size = max(1, _NUMBERS_OF_A_PIECE // max(1, self.shape[1:].numel()))
        return one_after_another(self, torch.split(torch.arange(len(self)), size))

    def decoded(self, title: str) -> Tensor:
        """All of them as uint8, which may be those of the source; a bar is called `title`."""
        assert self._seen is None, "expected images as they are"
        return self._source.whole(self._rows, title)

    def of_rows(self, rows: Tensor | slice) -> StreamedImages:
        """Those of some rows, of the same source."""
        return replace(self, _rows=self._rows[rows])

    def to(self, device: torch.device) -> Images:
        """On the device: all as networks see them if they are few, else as uint8 or on demand."""
        there = replace(self, device=device)
        if self._seen is not None and are_few(self):
            return there[:]
        is_there = isinstance(self._source, Pixels) and self._source.are_on(device)
        if device.type == "cpu" or self.nbytes > self.keep or is_there:
            return there
        pixels = self._source.whole(self._rows, "images").to(device)
        return pixels if self._seen is None else self.of_pixels(pixels).seen_by(self._seen)

    def seen_by(self, seen: Callable[[Tensor], Tensor]) -> StreamedImages:
        """The same, of which a function makes what is given for rows."""
        return replace(self, _seen=seen)


Images = Tensor | StreamedImages
"""Images by rows, there already or made when they are asked for."""


def are_few(images: Images) -> bool:
    """Whether what networks see of uint8 images may be there at once."""
    return 4 * images.nbytes <= SMALL


def rows_of(images: Images, rows: Tensor | slice) -> Images:
    """Those of some rows, which are made when they are asked for if all are."""
    return images.of_rows(rows) if isinstance(images, StreamedImages) else images[rows]


def read_once(images: Images) -> Images:
    """The same, of which nothing more is kept; what is kept already is not made again."""
    return replace(images, _keeps=False) if isinstance(images, StreamedImages) else images


def all_of(images: Images) -> Tensor:
    """All of them in one tensor."""
    if not isinstance(images, StreamedImages):
        return images
    whole, first = torch.empty(images.shape, dtype=images.dtype, device=images.device), 0
    for piece in images.pieces():
        whole[first : first + len(piece)] = piece
        first += len(piece)
    return whole


def taken(images: Images, rows: Tensor) -> Tensor:
    """Rows that are told on the CPU, of images on any device."""
    return images[rows] if isinstance(images, StreamedImages) else images[rows.to(images.device)]


def one_after_another(images: Images, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Rows of images, batch by batch; what is read or decoded is so while the last is used."""
    if not isinstance(images, StreamedImages) or images.are_at_hand:
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
