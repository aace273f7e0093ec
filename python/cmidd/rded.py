"""RDED: images put together of the parts of real ones that a teacher is surest of.

With f the factor, and count images to make of a class:

    candidates  random training images of the class; of each some parts of u(0.08, 1) of the area,
                anywhere, as high as wide, made a cell: 1/f of the height and width of an image
    score       cross-entropy of the teacher's logits of a cell, amid zeros in an image's size
    chosen      the best part of each candidate; of these the count f^2 best, the best first
    image i     f x f cells row by row, of which cell k is chosen[k count + i]

There is no optimisation. Memory is that of a cell of each candidate of one class, and pictures that
are decoded are not kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.augment_operations import OPERATIONS, PUBLISHED_AMOUNTS
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import one_after_another, read_once
from cmidd.networks import GPU_IMAGES_FORWARD, images_per_chunk
from cmidd.seeds import generator

CANDIDATES = 300
"""How many training images of a class are looked at, unless told otherwise."""
_IMAGES_PER_READ = 32
"""How many candidates are decoded together, however few parts the teacher takes."""


class Parts(NamedTuple):
    """What was drawn for a class: the rows of M candidates, and parts of each."""

    rows: Tensor  # (M,) of the training images
    places: Tensor  # (M, crops, 4) int64: top, height, left and width in pixels


def draw_parts(dataset: Dataset, label: int, seed: int, candidates: int, crops: int) -> Parts:
    """Candidates of a class, each at most once, and their parts: a function of seed and label.

    Fewer candidates are the first of more.
    """
    first, end = dataset.train.offsets[label : label + 2].tolist()
    rng = generator(seed, "rded", label)
    rows = first + torch.randperm(end - first, generator=rng)[:candidates]
    u = torch.rand(len(rows), crops, 4, dtype=torch.float64, generator=rng).movedim(2, 0)
    u[1] = 0.5  # as high as wide
    _, height, width = dataset.shape
    columns = OPERATIONS["zoom"].parameters(u, PUBLISHED_AMOUNTS, height, width)
    return Parts(rows, torch.stack(columns, 2).long())


@torch.no_grad()
def rded_images(
    dataset: Dataset,
    teacher: nn.Module,
    label: int,
    count: int,
    factor: int,
    seed: int,
    device: torch.device,
    candidates: int = CANDIDATES,
    crops: int = 5,
) -> Tensor:
    """Images `(count, channels, height, width)` of a class, as networks see them.

    Args:
        dataset: whose training images they are put together of.
        teacher: frozen, on the device, as `load_teachers` gives it.
        label: the class.
        count: how many images.
        factor: cells along each side of an image.
        seed: of the candidates and their parts, with the label.
        device: where the teacher is, and the images come to be.
        candidates: training images to choose from, or all that the class has.
        crops: parts of each of them.
    """
    _, height, width = dataset.shape
    _check(dataset, label, count, factor, candidates, crops)
    _check_enough(dataset, label, count, factor, candidates)
    rows, places = draw_parts(dataset, label, seed, candidates, crops)
    size = height // factor, width // factor
    up, left = (height - size[0]) // 2, (width - size[1]) // 2
    around = left, width - size[1] - left, up, height - size[0] - up
    chunk = images_per_chunk(device, height, GPU_IMAGES_FORWARD)
    source, reads = read_once(dataset.train.source), torch.split(rows, _IMAGES_PER_READ)
    cells, scores = [], []
    for pixels, of_read in zip(
        one_after_another(source, reads), torch.split(places, _IMAGES_PER_READ), strict=True
    ):
        images = dataset.to_input(pixels.to(device))
        parts = torch.cat(
            [
                _resized(image, place, size)
                for image, of_image in zip(images, of_read.tolist(), strict=True)
                for place in of_image
            ]
        )
        logits = torch.cat([teacher(F.pad(some, around)) for some in torch.split(parts, chunk)])
        labels = torch.full((len(parts),), label, device=device)
        loss = F.cross_entropy(logits.to(parts.dtype), labels, reduction="none")
        score, best = loss.view(-1, crops).cpu().min(1)
        cells.append(parts[(torch.arange(len(best)) * crops + best).to(device)])
        scores.append(score)
    all_scores = torch.cat(scores)
    if not all_scores.isfinite().all():
        raise ValueError(
            f"teacher: expected finite losses of images of class {label}, got NaN or Inf"
        )
    chosen = all_scores.argsort(stable=True)[: count * factor**2].to(device)
    return _tiled(torch.cat(cells)[chosen], factor)


def _check(
    dataset: Dataset, label: int, count: int, factor: int, candidates: int, crops: int
) -> None:
    if not 0 <= label < dataset.num_classes:
        raise ValueError(
            f"label: expected a class from 0 to {dataset.num_classes - 1}, got {label}"
        )
    told = {"count": count, "factor": factor, "candidates": candidates, "crops": crops}
    for name, value in told.items():
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    _, height, width = dataset.shape
    if height % factor or width % factor:
        raise ValueError(
            f"factor: expected one that divides images of {height} x {width}, got {factor}"
        )


def _check_enough(dataset: Dataset, label: int, count: int, factor: int, candidates: int) -> None:
    """Raise unless there is a candidate for each cell."""
    wanted, there = count * factor**2, int(dataset.train.offsets.diff()[label])
    if wanted > there:
        raise ValueError(
            f"count: expected at most {there // factor**2} images of {factor} x {factor} cells of "
            f"class {label}, which has {there} training images, got {count}"
        )
    if wanted > candidates:
        raise ValueError(
            f"candidates: expected at least {wanted}, one for each cell of {count} images of "
            f"{factor} x {factor}, got {candidates}"
        )


def _resized(image: Tensor, place: list[int], size: tuple[int, int]) -> Tensor:
    """A part of an image `(ch, H, W)` as one `(1, ch, *size)`; what shrinks is averaged."""
    top, high, left, wide = place
    part = image[None, :, top : top + high, left : left + wide]
    return F.interpolate(part, size, mode="bilinear", antialias=True)


def _tiled(cells: Tensor, factor: int) -> Tensor:
    """Images of f x f cells each; cell k of image i is number `k count + i`."""
    _, channels, high, wide = cells.shape
    grid = cells.view(factor, factor, -1, channels, high, wide)
    return grid.permute(2, 3, 0, 4, 1, 5).reshape(-1, channels, factor * high, factor * wide)
