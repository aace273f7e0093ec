"""What `relabel` can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmidd.options.fields import Options, option
from cmidd.options.recipe import PRECISIONS, Recipe, check_shares, recipe_of

SEEDS = 2**63
"""How many seeds there are."""


@dataclass(frozen=True)
class RelabelRunOptions(Options):
    """What is labelled, and by whom.

    Args:
        set: synthetic set: folder of a run, or its result.safetensors
        teacher: banks, files that cmidd pretrain makes; labels are the mean of the logits of all
            their networks
        out: file of the labels
        resume: go on with the labels that are there; with more epochs too
        dry_run: say what all labels cost in time, memory and disk, and end there
    """

    set: Path = option(names="set", positional=True)
    teacher: tuple[Path, ...] = option(names="teacher")
    out: Path = Path("runs/labels.safetensors")
    resume: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Raise where there is no teacher."""
        if not self.teacher:
            raise ValueError("teacher: expected a bank; cmidd pretrain makes one")


@dataclass(frozen=True)
class RelabelOptions(Options):
    """The images that training sees.

    Args:
        epochs: passes over the set whose images are labelled; default: as the set's method was
            published, else 300
        batch_size: images a step; default: as the set's method was published, else 100
        augmentation: operations, or none; default: as the set's method was published, else
            all:zoom_flip
        zoom: least share of an image's area that the operation zoom shows; default: as the set's
            method was published, else 0.08
        cutmix: probability that a batch is mixed by CutMix; default: as the set's method was
            published, else 1
        seed: of order, augmentation and mixing, which training repeats
        precision: of the teachers: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that
            has it, else float32
    """

    epochs: int | None = option(None, least=1)
    batch_size: int | None = option(None, least=1)
    augmentation: str | None = option(None, names="augmentation")
    zoom: float | None = option(None, above=0)
    cutmix: float | None = option(None, least=0)
    seed: int = option(0, least=0)
    precision: str | None = option(None, choices=PRECISIONS)

    def check(self) -> None:
        """Raise where a share, a probability or a seed is none."""
        check_shares((), self.cutmix, self.zoom)
        if self.seed >= SEEDS:
            raise ValueError(f"seed: expected a number below 2^63, got {self.seed}")

    def recipe(self, record: Mapping[str, Any]) -> Recipe:
        """How networks see the images of a set with this record.

        Its learning rate, and so its warm-up, are of no account.
        """
        return recipe_of(
            record,
            taught={},
            warm_up=0,
            epochs=self.epochs,
            batch_size=self.batch_size,
            augmentation=self.augmentation,
            zoom=self.zoom,
            cutmix=self.cutmix,
            precision=self.precision,
        )
