"""What is published of NCFM, by dataset, images per class and optimizer."""

from __future__ import annotations

from cmidd.datasets import Dataset
from cmidd.methods.base import Published

PUBLISHED_FOR = ("cifar10", "cifar100", "tinyimagenet")
"""Datasets here that settings were published for."""

IPCS = (1, 10, 50)
"""Images per class that they were published for."""

BY_SGD = ("cifar100", 10)
"""Dataset and images per class that were published with SGD; all others with AdamW."""

EPOCHS = {("tinyimagenet", 10): 300, ("tinyimagenet", 50): 40}
"""Of evaluation, by dataset and images per class, where they are not 2000."""


def published(dataset: Dataset, ipc: int) -> Published:
    """Settings of NCFM with cells."""
    return published_with(_known(dataset, ipc), dataset, ipc)


def published_with(optimizer: str, dataset: Dataset, ipc: int) -> Published:
    """The same with an optimizer, whose step size may be one that was published elsewhere."""
    is_sgd, near, factor = optimizer == "sgd", _nearest(ipc), _factor(dataset)
    return Published(
        loop={
            "iterations": 20000,
            "init": "cells",
            "lr_images": 0.01 if is_sgd else 0.001,
            "report_every": 10,
            "checkpoint_every": 100,
        },
        options={"factor": factor, "optimizer": optimizer, "weight_decay": 0.0 if is_sgd else 5e-4},
        evaluation={
            "epochs": EPOCHS.get((dataset.name, near), 2000),
            "augmentation": "idc:color_crop_flip_scale_rotate",
            "batch_size": 128,
            "optimizer": "adamw",
            "lr": 0.001,
            "weight_decay": 0.01,
            "drop_by": 2.0,
            "drop_at": [0.2, 0.4, 0.6, 0.8],
            "cutmix": 0.5,
        },
        origin=_origin(optimizer, dataset, ipc),
    )


def _factor(dataset: Dataset) -> int:
    # Ours, by images that were held out: cells of 4 x 4 pixels hold too little of a digit.
    return 1 if dataset.name == "digits" else 2


def _nearest(ipc: int) -> int:
    return min(IPCS, key=lambda known: abs(known - ipc))


def _known(dataset: Dataset, ipc: int) -> str:
    return "sgd" if (dataset.name, _nearest(ipc)) == BY_SGD else "adamw"


def _origin(optimizer: str, dataset: Dataset, ipc: int) -> str:
    """Where settings come from, and what they were not published for."""
    words = "as published, for factor 2"
    if dataset.name not in PUBLISHED_FOR:
        words = f"not published for {dataset.name}; those of NCFM for CIFAR-10, for factor 2"
        if _factor(dataset) != 2:
            words += f", but factor {_factor(dataset)} is ours"
    if ipc not in IPCS:
        words += f", for {_nearest(ipc)} images per class, the nearest to your {ipc}"
    if optimizer != _known(dataset, ipc):
        elsewhere = "CIFAR-100 at 10 images per class" if optimizer == "sgd" else "other settings"
        words += f"; lr_images is that of {optimizer} for {elsewhere}"
    return words
