"""The batches that networks train on: images by rows, augmented and mixed as was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Strategy, augment
from cmidd.augment_operations import PUBLISHED_AMOUNTS
from cmidd.datasets.streamed import Images, one_after_another
from cmidd.options.recipe import Recipe
from cmidd.training_draws import EpochDraws, mixed


class Batch(NamedTuple):
    """What K networks see in a step, or a rank's share of it."""

    images: Tensor  # (K, B, channels, height, width)
    targets: Tensor  # (K, B), or (K, B, C) of probabilities
    places: slice  # theirs in the order of the epoch
    size: int  # images of all ranks


def batches_of(
    images: Images,
    labels: Tensor,
    recipe: Recipe,
    strategy: Strategy,
    drawn: EpochDraws,
    num_classes: int,
    *,
    first: int = 0,
    seen: Callable[[Tensor], Tensor] | None = None,
    shared: bool = False,
) -> Iterator[Batch]:
    """The batches of an epoch, from step `first` on, each made when it is asked for.

    Args:
        images: `(N, channels, height, width)`.
        labels: `(N,)`, or `(N, C)` of probabilities.
        recipe: that `drawn` was drawn for.
        strategy: how images are augmented.
        drawn: of the epoch.
        num_classes: C.
        first: the step to begin with.
        seen: what networks see of the images of a batch; None: they are that already.
        shared: whether ranks share the images of each step.
    """
    amounts = replace(PUBLISHED_AMOUNTS, zoom=recipe.zoom)
    batches = torch.split(drawn.order, recipe.batch_size, dim=1)[first:]
    cut = shared and not drawn.mixing  # mixed images need others of the whole batch
    mine = [rows[:, ranks.slice_of(rows.shape[1])] if cut else rows for rows in batches]
    pixels = one_after_another(images, mine)  # (K, B, channels, height, width) of each step
    for step, (batch, rows) in enumerate(zip(batches, mine, strict=True), first):
        x = next(pixels)
        if seen is not None:
            x = seen(x.flatten(0, 1)).view_as(x)
        size = batch.shape[1]
        share = ranks.share_of(size) if shared else range(size)
        own = slice(share.start, share.stop)
        changes = drawn.augmentation[step] if drawn.augmentation else None
        if changes is not None and cut:
            changes = changes[own]
        if changes is not None and rows.numel():
            x = augment(x.flatten(0, 1), strategy, changes, amounts=amounts).view_as(x)
        y = labels[rows.to(labels.device)]
        if drawn.mixing:
            x, y = mixed(x, y, drawn.mixing[step], num_classes)
            x, y = x[:, own], y[:, own]
        start = step * recipe.batch_size
        yield Batch(x, y, slice(start + own.start, start + own.stop), size)
