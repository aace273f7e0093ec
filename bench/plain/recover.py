"""SRe2L, CDA, DWA and EDC as their published loops are structured, written anew in plain torch.

Every batch norm has a hook of its own that keeps the distance of what enters it. Crops are cut out
and resized by torch, images are stepped by Adam as its paper has it, and weights of a teacher are
moved one tensor at a time. What is drawn for a step, and the first images, are given. So in float64
a batch of `cmidd recover` is the same up to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def crop_scale(
    kind: str, step: int, iterations: int, share: float, ends: tuple[float, float]
) -> float:
    """The least area that a step of CDA shows, falling between two ends."""
    milestone = share * iterations
    first, last = ends
    if kind == "none" or step >= milestone:
        return last
    if kind == "step":
        return first
    if kind == "linear":
        return first * (1 - step / milestone) + last * step / milestone
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * step / milestone))


@dataclass
class NormHook:
    """The distance of one batch norm, and the running average of what enters it."""

    norm: nn.BatchNorm2d
    var_weight: float
    average: float
    of_classes: tuple[Tensor, Tensor] | None = None
    """Mean and variance of the classes of the batch."""
    share: float = 0.0
    """Of these in the distance."""
    distance: Tensor = field(default_factory=lambda: torch.zeros(()))
    mean: Tensor | None = None
    var: Tensor | None = None

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Note a forward."""
        (maps,) = inputs
        rows = maps.transpose(0, 1).reshape(maps.shape[1], -1)
        mean = rows.sum(1) / rows.shape[1]
        var = ((rows - mean[:, None]) ** 2).sum(1) / rows.shape[1]
        if self.mean is not None and self.var is not None and self.average:
            new_mean = self.average * self.mean + (1 - self.average) * mean.detach()
            new_var = self.average * self.var + (1 - self.average) * var.detach()
            mean = mean + (new_mean - mean.detach())  # its value, with the gradient of the step's
            var = var + (new_var - var.detach())
        self.mean, self.var = mean.detach(), var.detach()
        running_mean, running_var = self.norm.running_mean, self.norm.running_var
        assert running_mean is not None
        assert running_var is not None
        self.distance = (1 - self.share) * self._to(mean, var, running_mean, running_var)
        if self.of_classes is not None:
            self.distance = self.distance + self.share * self._to(mean, var, *self.of_classes)

    def _to(self, mean: Tensor, var: Tensor, wanted_mean: Tensor, wanted_var: Tensor) -> Tensor:
        of_var = ((var - wanted_var) ** 2).sum().sqrt()
        return self.var_weight * of_var + ((mean - wanted_mean) ** 2).sum().sqrt()


def batch_norms(teacher: nn.Module) -> list[nn.BatchNorm2d]:
    """Those of a teacher, in the order in which it lists them."""
    return [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]


def hooked(
    teacher: nn.Module,
    var_weight: float = 1.0,
    average: float = 0.0,
    of_classes: Sequence[tuple[Tensor, Tensor]] | None = None,
    share: float = 0.0,
) -> list[NormHook]:
    """A hook on each batch norm of a teacher, for good."""
    hooks = []
    for number, norm in enumerate(batch_norms(teacher)):
        wanted = None if of_classes is None else of_classes[number]
        hook = NormHook(norm, var_weight, average, wanted, share)
        norm.register_forward_pre_hook(hook)
        hooks.append(hook)
    return hooks


def loss_of(
    teacher: nn.Module,
    hooks: Sequence[NormHook],
    images: Tensor,
    labels: Tensor,
    bn_weight: float,
    first_bn_weight: float,
) -> Tensor:
    """Cross-entropy and the weighted distances, of images that are augmented."""
    total = F.cross_entropy(teacher(images), labels)
    for number, hook in enumerate(hooks):
        scale = first_bn_weight if number == 0 else 1.0
        total = total + bn_weight * scale * hook.distance
    return total


def cropped(images: Tensor, box: tuple[int, int, int, int], *, flip: bool) -> Tensor:
    """The part `(top, height, left, width)` of images, resized to the whole, and its mirror."""
    top, height, left, width = box
    part = images[:, :, top : top + height, left : left + width]
    resized = F.interpolate(part, size=images.shape[2:], mode="bilinear", align_corners=False)
    return torch.flip(resized, dims=[3]) if flip else resized


def shuffled(images: Tensor, count: int, order: Sequence[int]) -> Tensor:
    """The count x count patches of images, in another order."""
    bands = images.chunk(count, dim=2)
    patches = [patch for band in bands for patch in band.chunk(count, dim=3)]
    chosen = [patches[number] for number in order]
    rows = [torch.cat(chosen[k * count : (k + 1) * count], dim=3) for k in range(count)]
    return torch.cat(rows, dim=2)


def moved_teacher(
    teacher: nn.Module, images: Tensor, labels: Tensor, steps: int, size: float
) -> nn.Module:
    """DWA's teacher: its weights after some steps up the loss of the first images."""
    moved = copy.deepcopy(teacher)
    for parameter in moved.parameters():
        parameter.requires_grad_(True)
    for _ in range(steps):
        moved.zero_grad()
        F.cross_entropy(moved(images), labels).backward()  # type: ignore[no-untyped-call]
        squares = 0.0
        for parameter in moved.parameters():
            assert parameter.grad is not None
            squares += float((parameter.grad.double() ** 2).sum())
        for parameter in moved.parameters():
            assert parameter.grad is not None
            parameter.data.add_(parameter.grad, alpha=size / steps / math.sqrt(squares))
    for parameter in moved.parameters():
        parameter.requires_grad_(False)
    return moved


def recovered(
    images: Tensor,
    iterations: int,
    lr: float,
    range_of_pixels: tuple[Tensor, Tensor],
    loss_in: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """The images after all steps of Adam, with betas of 0.5 and 0.9 and a cosine of rates.

    Args:
        images: first ones.
        iterations: steps.
        lr: of the first step.
        range_of_pixels: least and largest normalised numbers of each channel.
        loss_in: of images and the number of the step.
    """
    x = images.clone().requires_grad_(True)
    first, second = torch.zeros_like(images), torch.zeros_like(images)
    for step in range(iterations):
        rate = lr * 0.5 * (1 + math.cos(math.pi * step / iterations))
        loss = loss_in(x, step)
        (gradient,) = torch.autograd.grad(loss, x)
        first = 0.5 * first + 0.5 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        unbiased = first / (1 - 0.5 ** (step + 1)), second / (1 - 0.9 ** (step + 1))
        moved = x.detach() - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        for channel in range(images.shape[1]):
            least, most = (float(end.flatten()[channel]) for end in range_of_pixels)
            moved[:, channel] = moved[:, channel].clamp(least, most)
        x = moved.requires_grad_(True)
    return x.detach()


def class_statistics(teacher: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of what enters each batch norm, of all images in one forward."""
    plain: Any = copy.deepcopy(teacher)
    hooks = hooked(plain)
    with torch.no_grad():
        plain(images)
    found = []
    for hook in hooks:
        assert hook.mean is not None
        assert hook.var is not None
        found.append((hook.mean, hook.var))
    return found
