"""Signs that a run diverges though nothing in it is NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

_RANGE = 20.0  # standard deviations; no real image is so far away, whitened or not
_GROWTH = 100.0  # of the loss, which methods begin with about as large as it ever is


def signs_of_divergence(largest: float, losses: Sequence[float]) -> list[str]:
    """What is wrong, a sentence each.

    Args:
        largest: the largest absolute value of the stored images, normalised.
        losses: as logged, from the first on.
    """
    signs = []
    if largest > _RANGE:
        signs.append(
            f"images left the range of the data: the largest value is {largest:.3g} standard "
            "deviations from the mean"
        )
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and 0 < _GROWTH * finite[0] < finite[-1]:
        signs.append(f"the loss grew from {finite[0]:.3g} to {finite[-1]:.3g}")
    return signs
