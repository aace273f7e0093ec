"""Teachers and recoveries so small that a step takes milliseconds."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.options.recover import RecoverCMIOptions, RecoverOptions
from cmidd.recovery.recover import Recovery, prepare_recovery, recover
from cmidd.storage.growing_file import GrowingFile
from cmidd.stored_pixels import as_items
from cmidd.synthetic import KIND, SyntheticSet
from tests.support.tiny import CPU, quiet, tiny_bank, tiny_dataset

TEACHER = "resnet18:width=4,norm=batch"


def tiny_teachers(path: Path, networks: int = 2) -> Path:
    """A file of networks with batch norm, trained on the tiny dataset."""
    tiny_bank(path, tiny_dataset(), network=TEACHER, networks=networks)
    return path


def recover_options(teacher: Path, **changes: Any) -> RecoverOptions:
    """Two images a class, two classes in a batch, and five steps, unless told otherwise."""
    usual: dict[str, Any] = {"ipc": 2, "batch_size": 4, "iterations": 5, "jitter": 2}
    if "augmentation" not in changes:
        usual |= {"augmentation": "all:zoom_flip", "zoom": 0.3}
    return RecoverOptions((teacher,), **{**usual, **changes})


def tiny_recovery(
    options: RecoverOptions, cmi: RecoverCMIOptions | None = None, dataset: Dataset | None = None
) -> Recovery:
    """A recovery from the tiny dataset."""
    return prepare_recovery(dataset or tiny_dataset(), options, cmi, CPU)


def in_float64(recovery: Recovery) -> Recovery:
    """The same, whose teachers, and so its images, are float64."""
    teachers = [copy.deepcopy(teacher).double() for teacher in recovery.task.teachers]
    return replace(recovery, task=recovery.task._replace(teachers=teachers))


def made(path: Path, recovery: Recovery, *, resume: bool = False) -> Path:
    """The file of a recovered set."""
    found = recover(recovery, recovery.folder(path, resume=resume), "the command", quiet)
    assert found is not None
    return found


def pixel_set(
    path: Path, dataset: Dataset, pixels: Tensor, labels: Tensor, batch_size: int
) -> SyntheticSet:
    """A set of these uint8 images from a file that keeps them as a recovery does."""
    batches = [
        as_items(some, classes, batch_size)
        for some, classes in zip(
            torch.split(pixels, batch_size), torch.split(labels, batch_size), strict=True
        )
    ]
    about = {**dataset.describe(), "class_names": list(dataset.class_names)}
    growing = GrowingFile(
        path, KIND, about, len(batches), batches[0], resume=False, what=KIND, lower="ipc"
    )
    for item, batch in enumerate(batches):
        growing.put(item, batch)
    growing.complete()
    return SyntheticSet.load(path)
