"""How networks are trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

DSA = "color_crop_cutout_flip_scale_rotate"
"""All operations of the augmentation, as published."""

OPTIMIZERS = ("sgd", "adamw")
"""What trains networks."""

SCHEDULES = ("drops", "cosine", "half_cosine")
"""How the learning rate falls."""

SOFT_LOSSES = ("kl", "mse")
"""What may be minimised between a teacher's logits and those of a network."""

_NAMES = {"sgd": "SGD", "adamw": "AdamW"}

PRECISIONS = ("float32", "tf32", "bfloat16")
"""What networks compute in, as `cmikernels.precision` does it."""


def check_shares(
    drop_at: Sequence[float] | None, cutmix: float | None, zoom: float | None = None
) -> None:
    """Raise where shares of the epochs or of an area, or a probability, are none."""
    if cutmix is not None and not 0 <= cutmix <= 1:
        raise ValueError(f"cutmix: expected a probability from 0 to 1, got {cutmix:g}")
    if zoom is not None and not 0 < zoom <= 1:
        raise ValueError(f"zoom: expected a share of the area up to 1, got {zoom:g}")
    if not all(0 <= share <= 1 for share in drop_at or ()):
        found = " ".join(f"{share:g}" for share in drop_at or ())
        raise ValueError(f"drop_at: expected shares of the epochs from 0 to 1, got {found}")


def check_temperature(soft_loss: str | None, told: Mapping[str, Any]) -> None:
    """Raise where the temperature is told of a loss that has none."""
    if soft_loss == "mse" and (told.get("temperature") or told.get("temperature_squared")):
        raise ValueError("temperature: expected it with soft_loss kl, got soft_loss mse")


@dataclass(frozen=True)
class Recipe:
    """How networks are trained.

    Args:
        epochs: passes over the images
        lr: learning rate of the optimizer
        momentum: of SGD
        weight_decay: of the optimizer
        batch_size: images a step
        drop_at: share of the epochs after which the learning rate is a tenth, or several shares,
            after each of which it falls once more; 1: never
        augmentation: operations such as color_crop_cutout_flip_scale_rotate, or none
        precision: of networks: float32, tf32 or bfloat16; None: as suits the device
        drop_by: what the learning rate is divided by, where it is not a tenth
        cutmix: probability that a batch is mixed by CutMix
        optimizer: sgd or adamw
        schedule: how the learning rate falls: drops, at drop_at; cosine, along half a cosine to 0,
            epoch by epoch; or half_cosine, along the first half of that, to a half
        warm_up: epochs before that, in which the learning rate rises from a hundredth
        zoom: the least share of an image's area that the operation zoom shows
        soft_loss: what is minimised between a teacher's logits and those of the network: kl, the
            divergence of their probabilities, or mse; none where there is no teacher
        temperature: of these probabilities
        temperature_squared: whether the divergence is multiplied by its square
        ce_weight: weight of the cross-entropy of labels, which is added
    """

    epochs: int
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    drop_at: float | Sequence[float] = 0.5
    augmentation: str = "none"
    precision: str | None = None
    drop_by: float = 10.0
    cutmix: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "drops"
    warm_up: int = 0
    zoom: float = 0.08
    soft_loss: str = "none"
    temperature: float = 1.0
    temperature_squared: bool = False
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.drop_at, Sequence):  # one alone is a number, several are a tuple
            several = tuple(self.drop_at) or (1.0,)
            object.__setattr__(self, "drop_at", several if len(several) > 1 else several[0])
        check_shares(self.drops, self.cutmix, self.zoom)
        self._check_loss()
        if self.warm_up and self.warm_up >= self.epochs:
            raise ValueError(
                f"warm_up: expected fewer epochs than the {self.epochs} in all, got {self.warm_up}"
            )

    def _check_loss(self) -> None:
        """Raise where there is no such loss between logits."""
        losses = ("none", *SOFT_LOSSES)
        if self.soft_loss not in losses:
            raise ValueError(f"soft_loss: expected {' or '.join(losses)}, got {self.soft_loss!r}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature!r}")
        if not 0 <= self.ce_weight < math.inf:
            raise ValueError(f"ce_weight: expected at least 0, got {self.ce_weight!r}")

    @property
    def drops(self) -> Sequence[float]:
        """Shares of the epochs after each of which the learning rate falls."""
        return self.drop_at if isinstance(self.drop_at, Sequence) else (self.drop_at,)

    def lr_in(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        if epoch < self.warm_up:
            return self.lr * (0.01 + 0.99 * epoch / self.warm_up)
        if self.schedule == "drops":
            passed = sum(epoch >= math.ceil(self.epochs * share) for share in self.drops)
            return self.lr / self.drop_by**passed
        share = (epoch - self.warm_up) / (self.epochs - self.warm_up)
        angle = math.pi * share / (2 if self.schedule == "half_cosine" else 1)
        return self.lr * (1 + math.cos(angle)) / 2

    def in_words(self) -> str:
        """Epochs, batches, schedule and optimizer where they are not as usual, and augmentation."""
        text, several = f"{self.epochs} epochs", len(self.drops) > 1 and self.schedule == "drops"
        if several or self.batch_size != PUBLISHED_RECIPE.batch_size:
            text += f" of batches of {self.batch_size}"
        if self.optimizer != "sgd":
            text += f" by {_NAMES[self.optimizer]}"
        if several:
            text += f" whose learning rate falls {len(self.drops)} times, by {self.drop_by:g}"
        elif self.schedule != "drops":
            to = "a half" if self.schedule == "half_cosine" else "0"
            text += f" whose learning rate falls to {to} along a cosine"
        if self.warm_up:
            text += f" after {self.warm_up} epochs of warm-up"
        return f"{text}, augmentation {self.augmentation}{' and CutMix' if self.cutmix else ''}"

    def loss_in_words(self) -> str:
        """What is minimised between a teacher's logits and those of a network."""
        text = "MSE of logits"
        if self.soft_loss == "kl":
            squared = " times its square" if self.temperature_squared else ""
            text = f"KL at temperature {self.temperature:g}{squared}"
        return f"{text} + {self.ce_weight:g} cross-entropy" if self.ce_weight else text

    def as_record(self) -> dict[str, Any]:
        """For JSON; without what only some recipes have, so that older files stay the same."""
        usual = {each.name: each.default for each in fields(self) if each.name in _LATER}
        record = asdict(self)
        if len(self.drops) > 1:
            record["drop_at"] = list(self.drops)
        return {name: v for name, v in record.items() if name not in usual or v != usual[name]}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe that `as_record` was called on."""
        return cls(**as_today(record))


OF_TEACHER = ("soft_loss", "temperature", "temperature_squared", "ce_weight")
"""What is said of a teacher's logits alone."""

_LATER = ("drop_by", "cutmix", "optimizer", "schedule", "warm_up", "zoom", *OF_TEACHER)


def as_today(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of a recipe, or of fields of it, as it is written today.

    A second drop of the learning rate has a name of its own in older ones.
    """
    found = dict(record)
    again = found.pop("drop_again_at", 1.0)
    if again < 1:
        found["drop_at"] = [found.get("drop_at", PUBLISHED_RECIPE.drop_at), again]
    return found


_OF_OPTIMIZER = ("lr", "weight_decay")
"""What is published for one optimizer alone."""

PUBLISHED_RECIPE = Recipe(epochs=1000, augmentation=DSA)

STUDENT_RECIPE = Recipe(
    epochs=300,
    lr=1e-3,
    weight_decay=0.01,
    batch_size=100,
    augmentation="all:zoom_flip",
    cutmix=1.0,
    optimizer="adamw",
    schedule="cosine",
    soft_loss="kl",
    temperature=20.0,
)
"""Of networks that learn a teacher's logits, as SRe2L has it on ImageNet, in smaller batches."""


def check_schedule(schedule: str | None, drop_at: Sequence[float] | None) -> None:
    """Raise where the learning rate is told to fall in two ways."""
    if drop_at and schedule not in (None, "drops"):
        raise ValueError(f"drop_at: expected it with schedule drops, got schedule {schedule}")


def recipe_of(
    record: Mapping[str, Any], *, taught: Mapping[str, Any] | None = None, **given: Any
) -> Recipe:
    """How networks are trained on a set: as given, as its record says, as is usual.

    Args:
        record: of the set. What it says of one optimizer or loss is not taken for another, and
            nothing that it says of hard labels for a teacher's logits.
        taught: fields that a teacher's logits are made for; None: networks learn labels.
        given: fields of the recipe; None stands for one that is not given.
    """
    said, usual = as_today(record.get("evaluation", {})), PUBLISHED_RECIPE
    told = {name: value for name, value in given.items() if value is not None}
    loss = said.get("soft_loss")
    if taught is None or told.get("soft_loss", loss) != loss:
        said = {name: value for name, value in said.items() if name not in OF_TEACHER}
    if taught is not None:
        said = {**said, **taught} if loss else dict(taught)
        usual = _student(told, said)
    if "drop_at" in told:
        told.setdefault("schedule", "drops")
    expected = said.get("optimizer", usual.optimizer)
    if told.get("optimizer", expected) != expected:
        said = {name: value for name, value in said.items() if name not in _OF_OPTIMIZER}
    recipe = replace(usual, **{**said, **told})
    check_temperature(recipe.soft_loss, told)
    if "zoom" in told and "zoom" not in re.split("[:_]", recipe.augmentation):
        raise ValueError(
            "zoom: expected it with the operation zoom, got the augmentation "
            f"{recipe.augmentation}; leave it out, or name the operation"
        )
    return recipe


def _student(told: Mapping[str, Any], said: Mapping[str, Any]) -> Recipe:
    """What is usual for networks that learn logits by the optimizer and loss that are told."""
    usual = STUDENT_RECIPE
    if told.get("optimizer", said.get("optimizer")) == "sgd":
        usual = replace(usual, lr=PUBLISHED_RECIPE.lr, weight_decay=PUBLISHED_RECIPE.weight_decay)
    if told.get("soft_loss", said.get("soft_loss")) == "mse":
        usual = replace(usual, temperature=1.0)
    return usual
