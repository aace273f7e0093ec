"""What is drawn to train networks: the order of images, their augmentation, and CutMix.

CutMix (Yun et al., ICCV 2019) puts a rectangle of another image of the batch into each image. With
u uniform in [0, 1), its sides are sqrt(1 - u) of those of the image, its centre is anywhere, what
lies outside of the image is cut off, and labels are mixed in the shares of the two images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cmidd.augment import Draw, Strategy, draw
from cmidd.augment_operations import inside
from cmidd.options.recipe import Recipe
from cmidd.seeds import generator

T = TypeVar("T")


class Mix(NamedTuple):
    """CutMix of a step of K networks, on the CPU."""

    partners: Tensor  # (K, B) int64: the place in the batch of the image that a rectangle is of
    numbers: Tensor  # (K, 3) float64: u, and the centre's row and column as shares of the sides


class Mixing(NamedTuple):
    """CutMix of a step, as the device takes it."""

    rows: Tensor  # (K B,): the place in all batches, joined, of the image that a rectangle is of
    edges: Tensor  # (K, 4) int64: first row and the one after the last, and columns
    shares: Tensor  # (2, K) float64: of the image itself, and of the other one


class EpochDraws(NamedTuple):
    """What is drawn for an epoch of K networks, on the CPU."""

    order: Tensor  # (K, N) int64: each network's order of the images
    augmentation: list[Draw]  # for each step, with a group for each image of each network
    mixing: Sequence[Mix] = ()  # for each step, where images are mixed


def draw_epochs(
    seeds: Sequence[int], count: int, recipe: Recipe, strategy: Strategy, first: int = 0
) -> Iterator[EpochDraws]:
    """From epoch `first` on what is drawn to train networks of such seeds on `count` images."""
    for epoch in range(first, recipe.epochs):
        yield draw_epoch(seeds, count, recipe, strategy, epoch)


def draw_epoch(
    seeds: Sequence[int],
    count: int,
    recipe: Recipe,
    strategy: Strategy,
    epoch: int,
    taken: int | None = None,
) -> EpochDraws:
    """What is drawn for an epoch, or for the first `taken` images of it."""
    order = torch.stack(
        _of_each(
            seeds, lambda s: torch.randperm(count, generator=generator(s, "order", epoch))[:taken]
        )
    )
    sizes = [rows.shape[1] for rows in torch.split(order, recipe.batch_size, dim=1)]
    steps = enumerate(sizes if strategy.operations else ())
    mixed_steps = enumerate(sizes if recipe.cutmix else ())
    return EpochDraws(
        order,
        [_draw_step(strategy, seeds, size, epoch, step) for step, size in steps],
        [_draw_mix(recipe.cutmix, seeds, size, epoch, step) for step, size in mixed_steps],
    )


def _draw_step(strategy: Strategy, seeds: Sequence[int], size: int, epoch: int, step: int) -> Draw:
    """One operation for each network's batch, parameters for each image."""
    draws = _of_each(
        seeds,
        lambda s: draw(
            strategy, size, generator(s, "augmentation", epoch, step), one_operation=True
        ),
    )
    return Draw(torch.cat([d.operations for d in draws]), torch.cat([d.numbers for d in draws]))


def _draw_mix(probability: float, seeds: Sequence[int], size: int, epoch: int, step: int) -> Mix:
    """One rectangle for each network's batch, of no size where it is not mixed."""

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        draws = generator(seed, "cutmix", epoch, step)
        chance, *of_box = torch.rand(4, dtype=torch.float64, generator=draws)
        if chance >= probability:
            of_box[0] = torch.ones(())
        return torch.randperm(size, generator=draws), torch.stack(of_box)

    partners, numbers = zip(*_of_each(seeds, drawn), strict=True)
    return Mix(torch.stack(partners), torch.stack(numbers))


def _of_each(seeds: Sequence[int], drawn: Callable[[int], T]) -> list[T]:
    """What is drawn by each seed, once for all networks that have the same."""
    found = {seed: drawn(seed) for seed in dict.fromkeys(seeds)}
    return [found[seed] for seed in seeds]


def box(numbers: Tensor, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the rectangle that was drawn for a batch."""
    u, *centre = numbers.tolist()
    cut = math.sqrt(1 - u)
    sides = []
    for share, side in zip(centre, (height, width), strict=True):
        middle, half = int(share * side), int(side * cut) // 2
        sides.append(slice(max(middle - half, 0), min(middle + half, side)))
    return sides[0], sides[1]


def mixing_of(mix: Mix, height: int, width: int) -> Mixing:
    """What was drawn for a step, worked out for images of a size."""
    count, size = mix.partners.shape
    boxes = [box(numbers, height, width) for numbers in mix.numbers]
    edges = torch.tensor([[edge for side in each for edge in (side.start, side.stop)]
                          for each in boxes])  # fmt: skip
    shares = ((edges[:, 1] - edges[:, 0]) * (edges[:, 3] - edges[:, 2])).double() / (height * width)
    places = mix.partners + size * torch.arange(count)[:, None]
    return Mixing(places.flatten(), edges, torch.stack([1 - shares, shares]))


def mixed(
    images: Tensor, targets: Tensor, mixing: Mixing, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Batches with rectangles of other images in them, and the probabilities of their classes.

    Args:
        images: `(K, B, channels, height, width)`, a batch for each network.
        targets: `(K, B)`, or `(K, B, C)` of probabilities.
        mixing: what was drawn, on their device.
        num_classes: C.
    """
    if targets.ndim == 2:
        # As one_hot, which on a CPU looks at the numbers first.
        targets = targets[..., None] == torch.arange(num_classes, device=targets.device)
    targets = targets.to(images)
    others, of_others = (
        each.flatten(0, 1)[mixing.rows].view_as(each) for each in (images, targets)
    )
    there = inside(images.shape[3:], *mixing.edges.view(-1, 4, 1, 1, 1).unbind(1))
    own, share = mixing.shares.to(images.dtype)[..., None, None]
    return torch.where(there[:, None], others, images), own * targets + share * of_others
