"""The labels of a set by teachers, epoch by epoch, into a file that grows (`label_file.py`).

Ranks take epochs in turn, and all of them write into the one file. A kill or a signal loses the
epoch under way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.device import precision_on, usable_device
from cmidd.interruption import deferred
from cmidd.label_file import KIND, LOGITS, SoftLabels, checksum_of, draw_seed, items_of
from cmidd.options.recipe import Recipe
from cmidd.options.relabel import RelabelOptions
from cmidd.progress import progress
from cmidd.seeds import STREAMS
from cmidd.storage.growing_file import GrowingFile, size_of
from cmidd.storage.lock import locked
from cmidd.storage.output import in_words
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import check_teachers, checksums, mean_logits
from cmidd.training_batches import EpochPlan, batches_of, plans_on
from cmidd.training_draws import EpochDraws, draw_epoch


class Relabelling:
    """A set, its teachers, and how its images are drawn: what makes the labels of each epoch.

    Args:
        synthetic_set: as it was distilled.
        dataset: that it was distilled from.
        teachers: networks in eval mode, on the device, that see images as networks that train on
            the set do; labels are the mean of their logits. Whether they were trained on images
            that are held out for judging, modules do not say: that is for you to know.
        options: of the drawing.
        device: where the teachers are; default: a GPU where there is one.
    """

    def __init__(
        self,
        synthetic_set: SyntheticSet,
        dataset: Dataset,
        teachers: Sequence[nn.Module],
        options: RelabelOptions,
        device: torch.device | str | None = None,
    ) -> None:
        options.check()
        place = usable_device(device)
        judge, seen = synthetic_set.whiten(dataset), synthetic_set.seen()
        judge.check_made_for(seen.record, "synthetic_set")
        self.teachers, self.num_classes = check_teachers(teachers), dataset.num_classes
        self.images, self.labels = seen.source.to(place), seen.targets.to(place)
        self.recipe: Recipe = options.recipe(synthetic_set.record)
        self.strategy = Strategy.parse(self.recipe.augmentation, mirror=dataset.mirror)
        self.precision = precision_on(place, options.precision)
        self.seed = draw_seed(options.seed)
        self.steps = math.ceil(len(self.images) / self.recipe.batch_size)
        self.record: dict[str, Any] = {
            **judge.describe(),
            "images": len(self.images),
            "set_crc32": checksum_of(synthetic_set),
            "epochs": self.recipe.epochs,
            "batch_size": self.recipe.batch_size,
            "augmentation": str(self.strategy),
            "zoom": float(self.recipe.zoom),
            "cutmix": float(self.recipe.cutmix),
            "seed": options.seed,
            "streams": STREAMS,
            "precision": self.precision,
            "teachers": checksums(teachers),
        }

    @property
    def about(self) -> str:
        """What is labelled, in words."""
        recipe, mixing = self.recipe, " and CutMix" if self.recipe.cutmix else ""
        return (
            f"{recipe.epochs} epochs of batches of {recipe.batch_size}, augmentation "
            f"{self.strategy}{mixing}"
        )

    def draw(self, epoch: int) -> EpochDraws:
        """What is drawn for an epoch."""
        return draw_epoch([self.seed], len(self.images), self.recipe, self.strategy, epoch)

    def labels_of(self, epoch: int, drawn: EpochDraws) -> Iterator[Tensor]:
        """Logits `(B, C)` float16 of each batch of an epoch, by what was drawn for it."""
        plans = [EpochPlan.of(drawn, self.images, self.recipe, self.strategy)]
        (plan,) = plans_on(self.images.device, plans)
        for batch in batches_of(self.images, self.labels, plan, self.num_classes):
            found = mean_logits(self.teachers, batch.images[0], self.num_classes, self.precision)
            labels = found.half()
            if not labels.isfinite().all():
                raise FloatingPointError(
                    f"teachers: expected logits that are finite in float16, got {found.abs().max()}"
                    f" in epoch {epoch + 1}"
                )
            yield labels

    def size(self, command: str = "") -> int:
        """Bytes that the file takes."""
        items = items_of(len(self.images), self.num_classes)
        return size_of(KIND, {**self.record, "command": command}, self.recipe.epochs, items)


def relabel(
    path: Path | str,
    work: Relabelling,
    *,
    resume: bool = False,
    command: str = "",
    say: Callable[[str], None] = tqdm.write,
) -> SoftLabels:
    """Label the epochs that are not there yet, and give back the complete file.

    Args:
        path: file of the labels.
        work: what is labelled, how and by whom; of a file that is there, only the number of epochs
            may change, to more.
        resume: go on with the file that was begun there.
        command: that makes the same again, for the record.
        say: told what is labelled, and what the file takes.

    Example:
        >>> data = cmidd.load_dataset("digits")
        >>> images = data.to_input(data.train.images[::150])
        >>> ten = cmidd.SyntheticSet.of(data, images, data.train.labels[::150])
        >>> options = cmidd.BankOptions("convnet:depth=2,width=8", networks=1, epochs=1)
        >>> bank = cmidd.train_bank("runs/teacher.safetensors", data, options, say=print)
        network 1 of 1: ...% of test images right
        >>> options = cmidd.RelabelOptions(epochs=3, batch_size=5)
        >>> work = cmidd.Relabelling(ten, data, [bank[0]], options)
        >>> labels = cmidd.relabel("runs/labels.safetensors", work, say=print)
        3 epochs of batches of 5, augmentation all:zoom and CutMix; ...
        >>> cmidd.evaluate_set(ten, data, "convnet:depth=2,width=8", repeats=1, teacher=labels)
        3 epochs ...
    """
    path = Path(path)
    epochs = work.recipe.epochs
    with ranks.only_first(lambda: locked(path)):
        growing = ranks.from_first(
            lambda: GrowingFile(
                path,
                KIND,
                work.record,
                epochs,
                items_of(len(work.images), work.num_classes),
                resume=resume,
                what=KIND,
                lower="epochs",
                grows="epochs",
                noted={"command": command},
            )
        )
        missing = ranks.from_first(growing.missing)
        if len(missing) < epochs:
            say(f"{epochs - len(missing)} of {epochs} epochs are there already")
        if missing:
            say(
                f"{work.about}; {path} takes {in_words(growing.size)} ({in_words(growing.free)} "
                "free there)"
            )
            _label(growing, work, missing[ranks.number() :: ranks.count()])
        ranks.wait()
        ranks.from_first(growing.complete)
    return SoftLabels.load(path)


def _label(growing: GrowingFile, work: Relabelling, epochs: Sequence[int]) -> None:
    """Put the labels of epochs into the file."""
    labels = torch.empty(len(work.images), work.num_classes, dtype=torch.float16)
    total = len(epochs) * work.steps
    with deferred() as stop, progress(total=total, desc="labelling", unit="step") as bar:
        for epoch in epochs:
            first = 0
            for some in work.labels_of(epoch, work.draw(epoch)):
                labels[first : first + len(some)] = some.cpu()
                first += len(some)
                bar.update()
                if stop.asked and first < len(labels):
                    raise stop.interruption(_how_far(growing, work))
            growing.put(epoch, {LOGITS: labels})
            if stop.asked and growing.missing():
                raise stop.interruption(_how_far(growing, work))


def _how_far(growing: GrowingFile, work: Relabelling) -> str:
    """How many epochs are in the file when a signal ends the work, in words."""
    epochs = work.recipe.epochs
    return f"interrupted after {epochs - len(growing.missing())} of {epochs} epochs"
