"""The two scores of DD-Ranking, of shares of test images that networks get right.

    alpha = w (own - random) - (1 - w) (real - hard)
    beta  = g (augmented - random augmented) + (1 - g) (plain - random plain)
    LRS   = (e^alpha - e^-1) / (e - e^-1),  ARS the same of beta

own is the accuracy of a set with its own labels and recipe, hard that with classes as labels, plain
that without augmentation, random that of as many random real images, real that of all real images.

The release of DD-Ranking puts percentages where its formulas mean shares, so that its LRS is close
to -e^-1 / (e - e^-1) = -0.157 or grows beyond all bounds. These are the formulas of shares: both
scores lie in [0, 1], and are not to be compared with numbers of that release.
"""

from __future__ import annotations

import math


def label_robust_score(
    own: float, hard: float, random: float, real: float, weight: float = 0.5
) -> float:
    """How much of a set's accuracy is that of its images and not of its labels: LRS.

    Args:
        own: accuracy of the set with its own labels.
        hard: with classes as labels.
        random: of as many random real images.
        real: of all real images.
        weight: w, the weight of the gain over random images; the rest is that of what hard labels
            lose to all real images.
    """
    _check_shares(own=own, hard=hard, random=random, real=real, weight=weight)
    return scaled(weight * (own - random) - (1 - weight) * (real - hard))


def augmentation_robust_score(
    augmented: float,
    plain: float,
    random_augmented: float,
    random_plain: float,
    weight: float = 0.5,
) -> float:
    """How little a set's gain over random images owes to augmentation: ARS.

    Args:
        augmented: accuracy of the set with augmentation.
        plain: without.
        random_augmented: of as many random real images with augmentation.
        random_plain: without.
        weight: g, the weight of the gain with augmentation; the rest is that of the other.
    """
    _check_shares(
        augmented=augmented,
        plain=plain,
        random_augmented=random_augmented,
        random_plain=random_plain,
        weight=weight,
    )
    return scaled(weight * (augmented - random_augmented) + (1 - weight) * (plain - random_plain))


def scaled(difference: float) -> float:
    """What becomes of a difference of shares: -1 gives 0, and 1 gives 1."""
    return (math.exp(difference) - math.exp(-1)) / (math.e - math.exp(-1))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:  # nor is a NaN
            raise ValueError(f"{name}: expected a share from 0 to 1, got {share:g}")
