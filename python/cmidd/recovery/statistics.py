"""How far the statistics of images in a network are from those that its batch norms keep.

For the maps that enter batch norm l, with mean m and variance v of each channel (over images and
pixels, biased), and M, V what it keeps of training,

    distance = sum over l of w_l (r |V - v| + |M - m|),   |.| the Euclidean norm over channels,

where w is the weight of the first layer, and 1 of all others. In the place of M, V there may be a
share of the statistics of classes, and m, v may be running averages over steps, whose gradient is
that of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Statistics(NamedTuple):
    """Mean and variance of each channel of some maps."""

    mean: Tensor
    var: Tensor


class Seen(NamedTuple):
    """A batch norm and the statistics of what entered it."""

    norm: nn.BatchNorm2d
    statistics: Statistics


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Those of a network that keep statistics."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]


@contextmanager
def watched(network: nn.Module) -> Iterator[list[Seen]]:
    """What enters batch norms while it lasts, in order, in float32 at least."""
    seen: list[Seen] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        maps = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        var, mean = torch.var_mean(maps, (0, 2, 3), correction=0)
        seen.append(Seen(norm, Statistics(mean, var)))

    handles = [norm.register_forward_pre_hook(note) for norm in batch_norms(network)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def averaged(
    seen: Sequence[Seen], before: Sequence[Statistics] | None, share: float
) -> list[Statistics]:
    """Running averages of statistics, whose gradients are those of the statistics alone.

    Args:
        seen: of the step.
        before: the averages so far; None: there are none.
        share: that these have in the new ones.
    """
    if not share or before is None:
        return [each.statistics for each in seen]
    made = []
    for each, old in zip(seen, before, strict=True):
        mean, var = (
            new + share * (former - new.detach())
            for new, former in zip(each.statistics, old, strict=True)
        )
        made.append(Statistics(mean, var))
    return made


def kept(seen: Sequence[Seen]) -> list[Statistics]:
    """What the batch norms keep of training."""
    found = []
    for each in seen:
        mean, var = each.norm.running_mean, each.norm.running_var
        assert mean is not None
        assert var is not None
        found.append(Statistics(mean, var))
    return found


def distance(
    found: Sequence[Statistics],
    wanted: Sequence[Statistics],
    *,
    first_weight: float,
    var_weight: float,
) -> Tensor:
    """How far statistics are from those that are wanted, layer by layer."""
    total = torch.zeros((), dtype=found[0].mean.dtype, device=found[0].mean.device)
    for number, (of_images, target) in enumerate(zip(found, wanted, strict=True)):
        of_mean, of_var = (
            torch.linalg.vector_norm(goal.to(total) - ours)
            for ours, goal in zip(of_images, target, strict=True)
        )
        total = total + (1.0 if number else first_weight) * (var_weight * of_var + of_mean)
    return total
