"""What a step of recovery draws, and what it makes of the images of its batch.

The least area that is shown falls from a = `zoom_from` to b = `zoom` over the first T m of T steps,
m being the share `curriculum_share`, and is b after them. In step t it is

    cosine   b + (a - b) (1 + cos(pi t / (T m))) / 2
    linear   a + (b - a) t / (T m)
    step     a
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cmidd.augment import Draw, Strategy, augment, draw
from cmidd.augment_operations import Amounts
from cmidd.options.recover import RecoverOptions
from cmidd.seeds import generator


def least_area(options: RecoverOptions, step: int) -> float:
    """The least share of the area that a step shows."""
    first, last = options.zoom_from, options.zoom
    done = step / (options.iterations * options.curriculum_share)
    if options.curriculum == "none" or done >= 1:
        return last
    if options.curriculum == "cosine":
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2
    return first if options.curriculum == "step" else first + (last - first) * done


def lr_in(options: RecoverOptions, step: int) -> float:
    """The learning rate of a step."""
    return options.lr * (1 + math.cos(math.pi * step / options.iterations)) / 2


class StepDraws(NamedTuple):
    """Everything that is drawn for a step, which all images of its batch share."""

    teacher: int
    patches: Tensor
    """The place that each patch comes from."""
    augmentation: Draw
    roll: tuple[int, int]
    """Pixels down and to the right."""


def draw_step(
    options: RecoverOptions, strategy: Strategy, teachers: int, item: int, step: int
) -> StepDraws:
    """The draws of a step of a batch, which depend on its numbers and the seed alone."""

    def stream(purpose: str) -> torch.Generator:
        return generator(options.seed, f"recovery: {purpose}", item, step)

    down, right = torch.randint(options.jitter + 1, (2,), generator=stream("roll")).tolist()
    return StepDraws(
        int(torch.randint(teachers, (), generator=stream("teacher"))),
        torch.randperm(options.patches**2, generator=stream("patches")),
        draw(strategy, 1, stream("augmentation")),
        (down, right),
    )


def augmented(
    images: Tensor, options: RecoverOptions, strategy: Strategy, drawn: StepDraws, step: int
) -> Tensor:
    """What a teacher sees of the images in a step: patches, then augmentation, then the roll."""
    if options.patches > 1:
        images = reordered(images, options.patches, drawn.patches)
    amounts = Amounts(zoom=least_area(options, step))
    changed = augment(images, strategy, drawn.augmentation, amounts=amounts)
    return changed.roll(drawn.roll, (2, 3)) if any(drawn.roll) else changed


def reordered(images: Tensor, count: int, order: Tensor) -> Tensor:
    """The count x count patches of each image, row by row, in another order."""
    n, channels, height, width = images.shape
    grid = images.view(n, channels, count, height // count, count, width // count)
    patches = grid.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)[order.to(images.device)]
    back = patches.view(count, count, n, channels, height // count, width // count)
    return back.permute(2, 3, 0, 4, 1, 5).reshape(n, channels, height, width)
