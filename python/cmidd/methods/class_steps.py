"""One step for all classes in the place of a step after each, as IDC, IDM and NCFM are published.

The published loops take a step of SGD, of length a and momentum m, after each of C classes in turn.
The gradient of one class moves the images of that class at once and, through the momentum, in the
C - 1 steps that follow, before their own gradient is asked for again:

    in all  a (1 + m + ... + m^(C-1)) = a (1 - m^C) / (1 - m),  and m^C of the buffer is left

So a step of SGD for all classes together, of this length and momentum m^C, is the same, up to the
part of a displacement that is still to come where a run ends or images are changed otherwise.

NCFM takes n = 2C steps of AdamW, of length a, weight decay d and averages that forget by b1 and b2.
In n - 1 of them a gradient g of a class is zero. A gradient moves its images by shares of the
average that add up to 1, and the mean square of all n is g^2 / n, so it moves them, in all, by

    a g / sqrt(g^2 / n) = a sqrt(n),    b1^n and b2^n of the averages are left, and n a d of images

Here the two gradients of a class are one, and a step of AdamW has the length a sqrt(n), these
averages, and the weight decay d sqrt(n). In a simulation images went 0.9 to 1.1 times as far as in
the published order, along the same way but for an angle below 18 degrees.
"""

from __future__ import annotations

import math
from typing import Any

import torch


def steps_in_one(momentum: float, classes: int) -> float:
    """How many steps of one class the step of all of them is as long as."""
    return sum(momentum**k for k in range(classes))


def sgd_after_each_class(
    groups: list[dict[str, Any]], momentum: float, classes: int
) -> torch.optim.SGD:
    """SGD whose step of all classes is that of a step of `groups` after each of them."""
    longer = _longer(groups, steps_in_one(momentum, classes))
    return torch.optim.SGD(longer, momentum=momentum**classes)


def adamw_after_each_class(
    groups: list[dict[str, Any]], weight_decay: float, classes: int
) -> tuple[torch.optim.AdamW, float]:
    """AdamW whose step of all classes is near to two of `groups` after each; how much longer."""
    count, (of_mean, of_square) = 2 * classes, (0.9, 0.999)
    longer = math.sqrt(count)
    made = torch.optim.AdamW(
        _longer(groups, longer),
        betas=(of_mean**count, of_square**count),
        weight_decay=weight_decay * longer,
    )
    return made, longer


def _longer(groups: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    return [{**group, "lr": group["lr"] * factor} for group in groups]
