"""How networks are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

DSA = "color_crop_cutout_flip_scale_rotate"
"""All operations of the augmentation, as published."""

PRECISIONS = ("float32", "tf32", "bfloat16")
"""What networks compute in, as `cmikernels.precision` does it."""


@dataclass(frozen=True)
class Recipe:
    """How networks are trained.

    Args:
        epochs: passes over the images
        lr: learning rate of SGD
        momentum: of SGD
        weight_decay: of SGD
        batch_size: images a step
        drop_at: share of the epochs after which the learning rate is a tenth; 1: never
        augmentation: operations such as color_crop_cutout_flip_scale_rotate, or none
        precision: of networks: float32, tf32 or bfloat16; None: as suits the device
        drop_by: what the learning rate is divided by, where it is not a tenth
        drop_again_at: share of the epochs after which it is divided by that once more; 1: never
        cutmix: probability that a batch is mixed by CutMix
    """

    epochs: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    drop_at: float = 0.5
    augmentation: str = "none"
    precision: str | None = None
    drop_by: float = 10.0
    drop_again_at: float = 1.0
    cutmix: float = 0.0

    def as_record(self) -> dict[str, Any]:
        """For JSON; without what only some recipes have, so that older files stay the same."""
        usual = {each.name: each.default for each in fields(self) if each.name in _LATER}
        record = asdict(self)
        return {name: v for name, v in record.items() if name not in usual or v != usual[name]}


_LATER = ("drop_by", "drop_again_at", "cutmix")

PUBLISHED_RECIPE = Recipe(epochs=1000, augmentation=DSA)


def recipe_of(record: Mapping[str, Any], **given: Any) -> Recipe:
    """How networks are trained on a set: as given, as its record says, as is usual.

    Args:
        record: of the set.
        given: fields of the recipe; None stands for one that is not given.
    """
    usual = replace(PUBLISHED_RECIPE, **record.get("evaluation", {}))
    return replace(usual, **{name: value for name, value in given.items() if value is not None})
