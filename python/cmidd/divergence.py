"""Signs that a run has diverged, though every number in it is finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LARGEST = 20.0  # standard deviations; of real images hardly any pixel is beyond three
_GROWTH = 100.0  # of the loss, from the first one to the last


def signs_of_divergence(largest: float, losses: Sequence[float]) -> list[str]:
    """What is wrong with a run, in sentences; none where nothing is.

    Args:
        largest: absolute value of the stored images, in standard deviations of the data.
        losses: of the run, in order; those that are not finite are passed over.
    """
    signs = []
    if largest > _LARGEST:
        signs.append(
            f"images left the range of the data: the largest value is {largest:.3g} standard "
            "deviations from the mean"
        )
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and 0 < _GROWTH * finite[0] < finite[-1]:
        signs.append(f"the loss grew from {finite[0]:.3g} to {finite[-1]:.3g}")
    return signs
