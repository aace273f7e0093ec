"""Image files of any common format, decoded by threads into one tensor.

Formats are those that Pillow reads by itself. PostScript, which it hands to an interpreter, is not
among them, whatever a file is called.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cmidd.datasets.files import reading
from cmidd.datasets.pixels import ImageShape
from cmidd.progress import progress

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_AT_ONCE = 64  # images that a thread takes from the queue at most


class Picture(NamedTuple):
    """An encoded image, and what errors call it."""

    name: str
    file: Path | io.BytesIO


class PictureFiles:
    """Files by their paths, of which there may be millions."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int, /) -> Picture:
        return Picture(self._paths[row], Path(self._paths[row]))


class Pictures(Protocol):
    """Encoded images that are fetched one by one, from any thread."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Picture: ...


def common_shape(sets: Sequence[Pictures], size: int | None) -> ImageShape:
    """Grey if all pictures are, of `size` or else as large as the first one."""
    grey = all(_is_grey(pictures[row]) for pictures in sets for row in range(len(pictures)))
    with _open(sets[0][0]) as image:
        width, height = image.size
    return ImageShape(1 if grey else 3, size or height, size or width)


def decode(
    pictures: Pictures, rows: Tensor, shape: ImageShape, *, resize: bool, title: str | None = None
) -> Tensor:
    """(N, channels, height, width) uint8 of pictures.

    Args:
        pictures: encoded.
        rows: (N,), which of them.
        shape: of each image.
        resize: cut the middle of each picture out in the proportions of `shape` and scale it; else
            a picture of another size is an error.
        title: of a bar.
    """
    images = torch.empty(len(rows), *shape, dtype=torch.uint8)
    wanted = rows.tolist()

    def decode_one(place: int) -> None:
        with _open(pictures[wanted[place]]) as image:
            pixels = image.convert("L" if shape.channels == 1 else "RGB")
            if resize:
                pixels = ImageOps.fit(pixels, (shape.width, shape.height))
            elif pixels.size != (shape.width, shape.height):
                raise ValueError(
                    f"is {pixels.width} x {pixels.height} pixels where others are "
                    f"{shape.width} x {shape.height}; give a size to make all alike"
                )
            array = np.array(pixels).reshape(shape.height, shape.width, shape.channels)
            images[place] = torch.from_numpy(array).permute(2, 0, 1)

    def decode_some(first: int) -> int:
        places = range(len(wanted))[first : first + at_once]
        for place in places:
            decode_one(place)
        return len(places)

    threads = os.cpu_count() or 1
    at_once = max(1, min(len(wanted) // (4 * threads), _AT_ONCE))
    # It waits for its threads: one that is left when the interpreter ends can end it badly.
    with contextlib.ExitStack() as around:
        pool, bar = around.enter_context(ThreadPoolExecutor(threads)), None
        if title is not None:
            told = progress(total=len(wanted), desc=title, unit=" images", leave=False)
            bar = around.enter_context(told)
        for count in pool.map(decode_some, range(0, len(wanted), at_once)):
            if bar is not None:
                bar.update(count)
    return images


def _is_grey(picture: Picture) -> bool:
    with _open(picture) as image:
        return image.mode in _GREY


@contextlib.contextmanager
def _open(picture: Picture) -> Iterator[Image.Image]:
    """The header of a picture that can be decoded; its pixels are read when they are asked for.

    What goes wrong inside names the picture.
    """
    with reading(picture.name), Image.open(picture.file, formats=_FORMATS) as image:
        most = Image.MAX_IMAGE_PIXELS  # where Pillow warns; it refuses twice as many
        if most is not None and image.width * image.height > most:
            raise ValueError(f"is {image.width} x {image.height} pixels, more than {most}")
        if image.mode not in _GREY + _COLOUR:
            raise ValueError(f"has pixels of mode {image.mode}; save it as 8-bit grey or RGB")
        yield image
