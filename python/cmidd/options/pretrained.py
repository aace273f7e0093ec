"""Networks that are trained before a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import DSA, PRECISIONS, SCHEDULES, Recipe, check_schedule, check_shares

OBJECTIVES = ("cross_entropy", "mcmi")
"""What the networks of a bank minimise."""

CENTROIDS = ("frozen", "moving")
"""What becomes of the centroids of MCMI while networks learn."""

_PUBLISHED: dict[str, dict[str, Any]] = {
    "cross_entropy": {
        "networks": 20,
        "epochs": 40,
        "lr": 0.01,
        "weight_decay": 1e-3,
        "batch_size": 256,
        "augmentation": "none",
        "schedule": "drops",
    },
    "mcmi": {
        "epochs": 20,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "batch_size": 64,
        "augmentation": "all:crop_flip",
        "schedule": "cosine",
        "mcmi_weight": -0.15,
        "centroids": "frozen",
    },
}
_DECAY = 0.9999
_MOST = 1e30  # of what `fused_cmi` takes as a weight
_OF_MCMI = ("from_bank", "mcmi_weight", "centroids", "centroid_decay")


@dataclass(frozen=True)
class BankOptions(Options):
    """The networks of a bank.

    Args:
        network: architecture; default: resnet18 as published, narrower for digits; mcmi takes that
            of from_bank
        networks: how many; published: 1000, few serve small datasets; default: 20, or for mcmi all
            of from_bank
        epochs: passes over the training images; default: 40, for mcmi 20
        lr: learning rate of SGD with momentum 0.9; default: 0.01, for mcmi 0.05, where 0.005 is
            published for small networks
        drop_at: shares of the epochs after each of which the learning rate falls; default: never
        drop_by: what it is divided by there
        weight_decay: of SGD; default: 0.001, for mcmi 0.0005
        batch_size: images a step; default: 256, for mcmi 64
        augmentation: operations color, crop, cutout, flip, scale, rotate, zoom, shuffle joined by
            _, or none; default: none as published, for mcmi all:crop_flip
        cutmix: probability that a batch is mixed by CutMix
        schedule: how the learning rate falls: drops, where drop_at says; cosine, epoch by epoch to
            0; or half_cosine, to a half; default: drops, for mcmi cosine
        warm_up: epochs before that, in which the learning rate rises from a hundredth
        seed: of first weights, order and augmentation; of order and augmentation alone for mcmi
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        together: networks trained at once; default: 1, on a GPU 5 small ones; for mcmi 1
        objective: what is minimised: cross_entropy of networks with fresh weights, or mcmi, by
            which those of from_bank are fine-tuned
        from_bank: file of the bank whose networks mcmi fine-tunes
        mcmi_weight: of CMI in the loss of mcmi; below 0 CMI becomes larger than in as many epochs
            with weight 0, and may still fall; default: -0.15 as published
        centroids: of classes, in mcmi: frozen as published, or moving with what networks make of
            images; default: frozen
        centroid_decay: share of a moving centroid that an image of its class leaves; default:
            0.9999
    """

    network: str | None = option(None, names="network")
    networks: int = option(AS_PUBLISHED, least=1)
    epochs: int = option(AS_PUBLISHED, least=1)
    lr: float = option(AS_PUBLISHED, above=0)
    drop_at: tuple[float, ...] = ()
    drop_by: float = option(10.0, above=0)
    weight_decay: float = option(AS_PUBLISHED, least=0)
    batch_size: int = option(AS_PUBLISHED, least=1)
    augmentation: str = option(AS_PUBLISHED, names="augmentation")
    cutmix: float = option(0.0, least=0)
    schedule: str = option(AS_PUBLISHED, choices=SCHEDULES)
    warm_up: int = option(0, least=0)
    seed: int = 0
    precision: str | None = option(None, choices=PRECISIONS)
    together: int | None = option(None, least=1)
    objective: str = option("cross_entropy", choices=OBJECTIVES)
    from_bank: Path | None = option(None, names="bank")
    mcmi_weight: float | None = None
    centroids: str | None = option(None, choices=CENTROIDS)
    centroid_decay: float | None = option(None, least=0)

    def __post_init__(self) -> None:
        not_given = super().defaults()
        for name, value in self._published().items():
            if getattr(self, name) is not_given[name]:
                object.__setattr__(self, name, value)
        super().__post_init__()
        weight = self.mcmi_weight
        if isinstance(weight, bool) or not isinstance(weight, int | float | None):
            raise TypeError(f"mcmi_weight: expected a number, got {type(weight).__name__}")
        if weight is not None and not abs(weight) <= _MOST:
            raise ValueError(
                f"mcmi_weight: expected a number from -{_MOST:g} to {_MOST:g}, got {weight}"
            )

    def _published(self) -> dict[str, Any]:
        """What suits the objective in the place of what is not given."""
        return _PUBLISHED.get(self.objective, {})

    @property
    def decay(self) -> float | None:
        """Share of a centroid that an image of its class leaves; None: they do not move."""
        if self.centroids != "moving":
            return None
        return _DECAY if self.centroid_decay is None else self.centroid_decay

    def defaults(self) -> dict[str, Any]:
        """What each option is where it is not given."""
        return {**super().defaults(), **self._published()}

    def check(self) -> None:
        """Raise where a share or a probability is none, or options do not fit one another."""
        check_shares(self.drop_at, self.cutmix)
        check_schedule(self.schedule, self.drop_at)
        if self.objective == "mcmi":
            self._check_mcmi()
            return
        for name in _OF_MCMI:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}: expected objective mcmi with it; give --objective mcmi too"
                )

    def _check_mcmi(self) -> None:
        """Raise where MCMI lacks something, or is told what it has no use for."""
        if self.from_bank is None:
            raise ValueError(
                "from_bank: expected a bank whose networks mcmi fine-tunes; cmidd pretrain without "
                "--objective makes one"
            )
        if self.network is not None:
            raise ValueError(
                "network: expected that of from_bank with objective mcmi; leave it out"
            )
        if self.cutmix:
            raise ValueError(
                "cutmix: expected 0 with objective mcmi, by which an image has one class"
            )
        if self.together not in (None, 1):
            raise ValueError(
                "together: expected 1 with objective mcmi, whose centroids are a network's own, "
                f"got {self.together}"
            )
        if self.centroids != "moving" and self.centroid_decay is not None:
            raise ValueError(
                "centroid_decay: expected moving centroids with it; give --centroids moving too"
            )
        if self.centroid_decay is not None and self.centroid_decay > 1:
            raise ValueError(
                f"centroid_decay: expected a share from 0 to 1, got {self.centroid_decay:g}"
            )

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
        usual = BankOptions().defaults()
        return {
            name: value
            for name, value in {**asdict(self), "centroid_decay": self.decay}.items()
            if name not in ("together", "from_bank")
            and (name not in _LATER or value != usual[name])
        }


_LATER = ("drop_at", "drop_by", "cutmix", "schedule", "warm_up", "objective", *_OF_MCMI)


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
        together: experts trained at once; default: 1 on a CPU, on a GPU 5 small ones
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
