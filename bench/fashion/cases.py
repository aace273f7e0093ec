"""What is run on FashionMNIST, and what is published about it.

A case is a set and the networks that are trained on it. Its stages are numbers of iterations: after
each of them networks are trained on the images of that moment, which gives accuracy over
iterations. To let a case go further, add a stage at the end; a run does not go back.

The published sets are made with 256 real images of a class in every update. Here it is a quarter,
so that two cores make four times as many updates in the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

DATASET = "fashionmnist"
HELD_OUT = 0.2
"""The share of the training images that sweeps judge by; bank and experts have not seen it."""
NETWORKS_BETWEEN = 2
"""Networks that are trained on the images of a stage that is not the last."""
BANK = ("--network=resnet18:width=16", "--networks=2", "--epochs=3")
EXPERTS = ("--experts=2", "--epochs=4", "--lr=0.02")
QUARTER = ("--batch_real=64",)
EPOCHS_AT_10 = 300
"""Of networks that learn from ten images a class; published are 1000."""
EPOCHS_ON_ALL = 10
"""Of networks that learn from all 60,000 real images; an epoch takes minutes."""


@dataclass(frozen=True)
class Case:
    """A set: of a method, of real images, or all of them."""

    method: str  # of METHODS, "random" or "all"
    ipc: int
    stages: tuple[int, ...] = (0,)
    weight: float = 0.0  # of CMI
    seed: int = 0
    options: tuple[str, ...] = ()  # of cmidd distill
    label: str = ""  # of the options, where cases differ in them
    networks: int = 5  # are trained after the last stage
    epochs: int | None = None  # of these; None: as published
    held_out: bool = False  # distilled from a part of the training images, judged by the rest

    @property
    def name(self) -> str:
        """Of its folder."""
        words = [self.method, str(self.ipc), f"cmi{self.weight:g}" if self.weight else ""]
        words += [
            self.label.replace(" ", "_"),
            f"seed{self.seed}",
            "held_out" if self.held_out else "",
        ]
        return "-".join(filter(None, words))

    @property
    def is_distilled(self) -> bool:
        """Whether a method makes it."""
        return self.method not in ("random", "all")

    def about(self) -> dict[str, Any]:
        """What tells its rows from those of others, and from those of other settings."""
        return {
            "method": self.method,
            "ipc": self.ipc,
            "weight": self.weight,
            "label": self.label,
            "seed": self.seed,
            "held_out": self.held_out,
            "options": " ".join(self.options),
            "epochs_given": self.epochs,
        }

    def networks_after(self, stage: int) -> int:
        """How many networks are trained on the images of a stage."""
        return self.networks if stage == self.stages[-1] else NETWORKS_BETWEEN


def _with_and_without(case: Case, weight: float, seeds: int = 1) -> list[Case]:
    """The case for each seed, and the same with CMI."""
    both = [replace(case, seed=seed) for seed in range(seeds)]
    return [each for one in both for each in (one, replace(one, weight=weight))]


DM_1 = Case("dm", 1, (100, 300), options=QUARTER)
DM_10 = Case("dm", 10, (300, 1000), options=QUARTER, networks=2, epochs=EPOCHS_AT_10)
DM_50 = Case("dm", 50, (100,), options=QUARTER, networks=1, epochs=100)
DM_WEIGHT = 2000.0
MTT_STEPS = (
    "--student_steps=20",
    "--expert_epochs=1",
    "--max_start_epoch=2",
    "--lr_step_size=1e-5",
)
MTT_1 = Case("mtt", 1, (100, 300), options=(*MTT_STEPS, "--lr_images=100"))
MTT_10 = Case(
    "mtt", 10, (50, 100), options=(*MTT_STEPS, "--lr_images=1000"), networks=2, epochs=EPOCHS_AT_10
)
MTT_WEIGHT = 0.01
IDC_STEPS = ("--lr_images=0.001", "--inner_steps=5", "--images_net=256")
IDC_1 = Case("idc", 1, (12, 30), options=(*IDC_STEPS, "--factor=2"))
TABLE = [
    Case("random", 1),
    Case("random", 10, networks=3, epochs=EPOCHS_AT_10),
    Case("random", 50, networks=1, epochs=100),
    Case("dc", 1, (100, 200), options=QUARTER),
    Case("dsa", 1, (100, 200), options=QUARTER),
    DM_1,
    *_with_and_without(DM_10, DM_WEIGHT, seeds=3),
    *_with_and_without(DM_50, DM_WEIGHT),
    MTT_1,
    *_with_and_without(MTT_10, MTT_WEIGHT),
    IDC_1,
    replace(IDC_1, options=(*IDC_STEPS, "--factor=1"), label="factor 1"),
    Case("all", 0, networks=1, epochs=EPOCHS_ON_ALL),
]
SWEEPS = {
    "cmi": [
        replace(DM_10, stages=(100,), weight=weight, held_out=True)
        for weight in (0.0, 2000.0, 200.0, 20000.0)
    ],
    "precision": [
        replace(each, options=(*each.options, *options), label=label)
        for each in (
            replace(DM_10, stages=(100,), weight=DM_WEIGHT, seed=seed, held_out=True)
            for seed in range(3)
        )
        for label, options in (("", ()), ("networks in bfloat16", ("--cmi_precision=bfloat16",)))
    ],
    "mtt": [
        replace(
            MTT_1,
            stages=(50,),
            options=(*MTT_STEPS, f"--lr_images={rate}"),
            label=f"lr_images {rate}",
            networks=2,
            held_out=True,
        )
        for rate in (10, 100, 1000)
    ],
    "idc": [
        replace(
            IDC_1,
            stages=(12,),
            options=(f"--lr_images={rate}", *IDC_STEPS[1:], "--factor=2"),
            label=f"lr_images {rate}",
            networks=2,
            held_out=True,
        )
        for rate in (0.0003, 0.001)
    ],
}
"""Settings that were tried, by the training images that are held out. "precision" is that of the
regulariser's networks."""
SETTINGS = {
    "dataset": DATASET,
    "held_out": HELD_OUT,
    "bank": " ".join(BANK),
    "experts": " ".join(EXPERTS),
}
"""What all rows have in common."""


class Figure(NamedTuple):
    """Accuracy in % that others report, with its deviation."""

    accuracy: float
    deviation: float | None = None

    def __str__(self) -> str:
        return str(self.accuracy) + (f" ± {self.deviation}" if self.deviation else "")


PUBLISHED = {
    ("dc", 1, ""): Figure(70.5, 0.6),
    ("dc", 10, ""): Figure(82.3, 0.4),
    ("dc", 50, ""): Figure(83.6, 0.4),
    ("dsa", 1, ""): Figure(70.6, 0.6),
    ("dsa", 10, ""): Figure(84.6, 0.3),
    ("dsa", 50, ""): Figure(88.7, 0.2),
    ("idc", 1, ""): Figure(81.0),
    ("idc", 1, "factor 1"): Figure(70.7),
}
"""By method, images per class and label: of DC and DSA from the table of their authors' program,
with deviations as the KIP paper quotes them; of IDC from that of its authors' program."""
PUBLISHED_ITERATIONS = {"dc": 1000, "dsa": 1000, "dm": 20000, "mtt": 5000, "idc": 2000}
