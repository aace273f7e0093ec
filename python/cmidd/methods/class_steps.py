"""One step of SGD for all classes in the place of a step after each, as IDC and IDM are published.

The published loops take a step of SGD, of length a and momentum m, after each of C classes in turn.
The gradient of one class moves the images of that class at once and, through the momentum, in the
C - 1 steps that follow, before their own gradient is asked for again:

    in all  a (1 + m + ... + m^(C-1)) = a (1 - m^C) / (1 - m),  and m^C of the buffer is left

So a step of SGD for all classes together, of this length and momentum m^C, is the same, up to the
part of a displacement that is still to come where a run ends or images are changed otherwise.
"""

from __future__ import annotations

from typing import Any

import torch


def steps_in_one(momentum: float, classes: int) -> float:
    """How many steps of one class the step of all of them is as long as."""
    return sum(momentum**k for k in range(classes))


def sgd_after_each_class(
    groups: list[dict[str, Any]], momentum: float, classes: int
) -> torch.optim.SGD:
    """SGD whose step of all classes is that of a step of `groups` after each of them."""
    longer = [{**group, "lr": group["lr"] * steps_in_one(momentum, classes)} for group in groups]
    return torch.optim.SGD(longer, momentum=momentum**classes)
