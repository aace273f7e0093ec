"""Networks that are trained before a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import DSA, PRECISIONS, SCHEDULES, Recipe, check_schedule, check_shares


@dataclass(frozen=True)
class BankOptions(Options):
    """The networks of a bank.

    Args:
        network: architecture; default: resnet18 as published, narrower for digits
        networks: how many; published: 1000, few serve small datasets
        epochs: passes over the training images
        lr: learning rate of SGD with momentum 0.9
        drop_at: shares of the epochs after each of which the learning rate falls; default: never
        drop_by: what it is divided by there
        weight_decay: of SGD
        batch_size: images a step
        augmentation: DSA operations, or none as published
        cutmix: probability that a batch is mixed by CutMix
        schedule: how the learning rate falls: drops, where drop_at says; cosine, epoch by epoch to
            0; or half_cosine, to a half
        warm_up: epochs before that, in which the learning rate rises from a hundredth
        seed: of first weights and order
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        together: networks trained at once; default: 1 on a CPU, 5 on a GPU
    """

    network: str | None = option(None, names="network")
    networks: int = option(20, least=1)
    epochs: int = option(40, least=1)
    lr: float = option(0.01, above=0)
    drop_at: tuple[float, ...] = ()
    drop_by: float = option(10.0, above=0)
    weight_decay: float = option(1e-3, least=0)
    batch_size: int = option(256, least=1)
    augmentation: str = option("none", names="augmentation")
    cutmix: float = option(0.0, least=0)
    schedule: str = option("drops", choices=SCHEDULES)
    warm_up: int = option(0, least=0)
    seed: int = 0
    precision: str | None = option(None, choices=PRECISIONS)
    together: int | None = option(None, least=1)

    def check(self) -> None:
        """Raise where a share or a probability is none, or the schedule does not fit."""
        check_shares(self.drop_at, self.cutmix)
        check_schedule(self.schedule, self.drop_at)

    def recipe(self) -> Recipe:
        """How each is trained."""
        return Recipe(
            self.epochs,
            self.lr,
            0.9,
            self.weight_decay,
            self.batch_size,
            self.drop_at,
            self.augmentation,
            self.precision,
            self.drop_by,
            self.cutmix,
            schedule=self.schedule,
            warm_up=self.warm_up,
        )

    def as_record(self) -> dict[str, Any]:
        """What a bank depends on; without what only some have, so that older files go on."""
        usual = {each.name: each.default for each in fields(self) if each.name in _LATER}
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "together" and (name not in usual or value != usual[name])
        }


_LATER = ("drop_at", "drop_by", "cutmix", "schedule", "warm_up")


@dataclass(frozen=True)
class ExpertOptions(Options):
    """The networks whose training MTT matches.

    Args:
        network: architecture, without batch norm; default: convnet, of depth 2 for images of 8 x 8
            and deeper from 64 x 64 on
        experts: how many; default: 100 as published, fewer for digits
        epochs: passes over the training images; their parameters are kept after each; default: 50
            as published, fewer for digits
        lr: learning rate of SGD; default: 0.01 as published, more for digits
        momentum: of SGD
        weight_decay: of SGD
        batch_size: images a step
        augmentation: DSA operations as published, or none
        seed: of first weights, order and augmentation
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        together: experts trained at once; default: 1 on a CPU, 5 on a GPU
    """

    network: str | None = option(None, names="network")
    experts: int = option(AS_PUBLISHED, least=1)
    epochs: int = option(AS_PUBLISHED, least=1)
    lr: float = option(AS_PUBLISHED, above=0)
    momentum: float = option(0.0, least=0)
    weight_decay: float = option(0.0, least=0)
    batch_size: int = option(256, least=1)
    augmentation: str = option(DSA, names="augmentation")
    seed: int = 0
    precision: str | None = option(None, choices=PRECISIONS)
    together: int | None = option(None, least=1)

    def recipe(self) -> Recipe:
        """How each is trained."""
        return Recipe(
            self.epochs,
            self.lr,
            self.momentum,
            self.weight_decay,
            self.batch_size,
            1.0,
            self.augmentation,
            self.precision,
        )
