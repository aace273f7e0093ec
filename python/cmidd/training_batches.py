"""The batches that networks train on: images by rows, augmented and mixed as was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Strategy, Turn, change, changes_of
from cmidd.augment_operations import PUBLISHED_AMOUNTS
from cmidd.datasets.streamed import Images, one_after_another
from cmidd.options.recipe import Recipe
from cmidd.parcel import sent
from cmidd.training_draws import EpochDraws, Mixing, mixed, mixing_of

_SENT_TOGETHER = 2**14
"""Images of small epochs, of all networks, of which what is drawn goes to a device in one copy."""


class Batch(NamedTuple):
    """What K networks see in a step, or a rank's share of it."""

    images: Tensor  # (K, B, channels, height, width)
    targets: Tensor  # (K, B), or (K, B, C) of probabilities
    places: slice  # theirs in the order of the epoch
    size: int  # images of all ranks


class StepPlan(NamedTuple):
    """What is drawn for a step, as the device takes it."""

    rows: Tensor  # (K, B) of the images
    changes: list[Turn]  # of these
    mixing: Mixing | None  # of all of the step; None: images are not mixed


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """What is drawn for an epoch, worked out for images of a size, of this rank."""

    steps: list[StepPlan]
    rows: list[Tensor]  # of each step, on the CPU
    sizes: list[int]  # images of each step, of all ranks
    own: list[slice]  # those of each that are this rank's

    @classmethod
    def of(
        cls,
        drawn: EpochDraws,
        images: Images,
        recipe: Recipe,
        strategy: Strategy,
        *,
        seen: Callable[[Tensor], Tensor] | None = None,
        shared: bool = False,
    ) -> EpochPlan:
        """What was drawn for a recipe and a strategy; arguments are those of `batches_of`."""
        amounts = replace(PUBLISHED_AMOUNTS, zoom=recipe.zoom)
        batches = torch.split(drawn.order, recipe.batch_size, dim=1)
        sizes = [batch.shape[1] for batch in batches]
        shares = [ranks.share_of(size) if shared else range(size) for size in sizes]
        own = [slice(share.start, share.stop) for share in shares]
        cut = shared and not drawn.mixing  # mixed images need others of the whole batch
        rows = [batch[:, some] if cut else batch for batch, some in zip(batches, own, strict=True)]
        dtype = torch.float32
        if drawn.augmentation:
            none = images[:0]
            dtype = (none if seen is None else seen(none)).dtype
        steps = []
        for k, of_step in enumerate(rows):
            changes: list[Turn] = []
            if drawn.augmentation and of_step.numel():
                all_drawn = drawn.augmentation[k]
                changes = changes_of(
                    strategy,
                    all_drawn[own[k]] if cut else all_drawn,
                    torch.arange(of_step.numel()),
                    images.shape[2:],
                    dtype,
                    images.device,
                    amounts=amounts,
                )
            mixing = mixing_of(drawn.mixing[k], *images.shape[2:]) if drawn.mixing else None
            steps.append(StepPlan(of_step, changes, mixing))
        return cls(steps, rows, sizes, own)


def plans_on(device: torch.device, plans: Iterable[EpochPlan]) -> Iterator[EpochPlan]:
    """The plans on a device, to which those of many small epochs go together."""
    group: list[EpochPlan] = []
    count = 0
    for plan in plans:
        group.append(plan)
        count += sum(rows.numel() for rows in plan.rows)
        if device.type == "cpu" or count >= _SENT_TOGETHER:
            yield from _sent(group, device)
            group, count = [], 0
    yield from _sent(group, device)


def _sent(plans: list[EpochPlan], device: torch.device) -> Iterator[EpochPlan]:
    steps = sent([plan.steps for plan in plans], device)
    for plan, there in zip(plans, steps, strict=True):
        yield replace(plan, steps=there)


def batches_of(
    images: Images,
    labels: Tensor,
    plan: EpochPlan,
    num_classes: int,
    *,
    first: int = 0,
    seen: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Batch]:
    """The batches of an epoch, from step `first` on, each made when it is asked for.

    Args:
        images: `(N, channels, height, width)`.
        labels: `(N,)`, or `(N, C)` of probabilities.
        plan: of the epoch, on their device.
        num_classes: C.
        first: the step to begin with.
        seen: what networks see of the images of a batch; None: they are that already.
    """
    on_cpu = not isinstance(images, Tensor) and images.rows_on.type == "cpu"
    rows = plan.rows if on_cpu else [step.rows for step in plan.steps]
    pixels = one_after_another(images, rows[first:])  # (K, B, channels, height, width) of each
    start = sum(plan.sizes[:first])
    for k, step in enumerate(plan.steps[first:], first):
        x, y = learned_of(next(pixels), labels, step, num_classes, seen=seen)
        own = plan.own[k]
        if step.mixing is not None:
            x, y = x[:, own], y[:, own]
        yield Batch(x, y, slice(start + own.start, start + own.stop), plan.sizes[k])
        start += plan.sizes[k]


def learned_of(
    images: Tensor,
    labels: Tensor,
    step: StepPlan,
    num_classes: int,
    *,
    seen: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """What networks see in a step, and its targets.

    Args:
        images: those of the step's rows, `(K, B, channels, height, width)`.
        labels: of all images, as of `batches_of` like the rest.
        step: what is drawn for it.
        num_classes: C.
        seen: what networks see of images.
    """
    if seen is not None:
        images = seen(images.flatten(0, 1)).view_as(images)
    if step.changes:
        images = change(images.flatten(0, 1), step.changes).view_as(images)
    targets = labels[step.rows]
    if step.mixing is None:
        return images, targets
    return mixed(images, targets, step.mixing, num_classes)
