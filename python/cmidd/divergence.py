"""Signs that a run diverges though nothing in it is NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_RANGE = 20.0  # standard deviations; no real image is so far away, whitened or not
_GROWTH = 100.0  # of the loss, which methods begin with about as large as it ever is


def signs_of_divergence(largest: float, log: Sequence[Mapping[str, float]]) -> list[str]:
    """What is wrong, a sentence each.

    Args:
        largest: the largest absolute value of the stored images, normalised.
        log: its lines, from the first on. What counts is the loss, or the distance in it where a
            method logs that, as one does whose loss has another weight from one line to the next.
    """
    signs = []
    if largest > _RANGE:
        signs.append(
            f"images left the range of the data: the largest value is {largest:.3g} standard "
            "deviations from the mean"
        )
    name = "distance" if log and "distance" in log[-1] else "loss"
    finite = [line[name] for line in log if name in line and math.isfinite(line[name])]
    if finite and 0 < _GROWTH * finite[0] < finite[-1]:
        signs.append(f"the {name} grew from {finite[0]:.3g} to {finite[-1]:.3g}")
    return signs
