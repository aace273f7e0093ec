"""Published settings of recovery, by recipe and dataset.

They were published for CIFAR-100, Tiny-ImageNet and ImageNet-1K. Another dataset takes those of the
one whose images are nearest in size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from cmidd.datasets import Dataset
from cmidd.device import with_precision
from cmidd.options.fields import AS_PUBLISHED, fill_in
from cmidd.options.recover import RecoverOptions
from cmidd.recovery.checks import check_effects

SIZES = {"cifar100": 32, "tinyimagenet": 64, "imagenet": 224}
"""Pixels of a side of the images that settings were published for."""

NAMES = {"sre2l": "SRe2L", "cda": "CDA", "dwa": "DWA", "edc": "EDC"}
"""Recipes as their authors write them."""

_USUAL: dict[str, Any] = {
    "start": "noise",
    "batch_size": 100,
    "augmentation": "all:zoom_flip",
    "zoom": 0.08,
    "curriculum": "none",
    "patches": 1,
    "var_weight": 1.0,
    "class_statistics": 0.0,
    "average": 0.0,
    "perturb_steps": 0,
    "perturb_size": 0.0,
}
PERTURB_SIZE = 0.015
"""Of DWA, and what serves where steps are given and their size is not."""
_PERTURBED = {"start": "real", "perturb_size": PERTURB_SIZE}

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("sre2l", "cifar100"): {
        "iterations": 1000, "lr": 0.25, "bn_weight": 0.01, "augmentation": "none",
    },
    ("sre2l", "tinyimagenet"): {"iterations": 4000, "lr": 0.1, "bn_weight": 1.0},
    ("sre2l", "imagenet"): {"iterations": 4000, "lr": 0.25, "bn_weight": 0.01},
    ("cda", "tinyimagenet"): {
        "iterations": 4000, "lr": 0.4, "bn_weight": 0.05, "curriculum": "cosine",
    },
    ("cda", "imagenet"): {
        "iterations": 4000, "lr": 0.25, "bn_weight": 0.01, "curriculum": "cosine",
    },
    ("dwa", "cifar100"): {
        "iterations": 1000, "lr": 0.25, "bn_weight": 0.01, "augmentation": "none",
        "var_weight": 11.0, "perturb_steps": 12, **_PERTURBED,
    },
    ("dwa", "tinyimagenet"): {
        "iterations": 2000, "lr": 0.1, "bn_weight": 0.01, "batch_size": 200,
        "var_weight": 11.0, "perturb_steps": 12, **_PERTURBED,
    },
    ("dwa", "imagenet"): {
        "iterations": 2000, "lr": 0.25, "bn_weight": 0.01,
        "var_weight": 2.0, "perturb_steps": 15, **_PERTURBED,
    },
    ("edc", "imagenet"): {
        "iterations": 1000, "lr": 0.05, "bn_weight": 0.1, "batch_size": 80, "start": "rded",
        "zoom": 0.5, "jitter": 0, "patches": 2, "class_statistics": 0.5, "average": 0.8,
    },
}  # fmt: skip
"""What each recipe has of its own for each dataset."""

_EVALUATION: dict[str, dict[str, Any]] = {
    "cifar100": {
        "epochs": 400, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.01, "batch_size": 128,
        "schedule": "cosine", "augmentation": "all:crop_flip", "soft_loss": "kl",
        "temperature": 30.0,
    },
    "tinyimagenet": {
        "epochs": 100, "lr": 0.2, "weight_decay": 1e-4, "schedule": "cosine", "warm_up": 5,
        "augmentation": "all:zoom_flip", "soft_loss": "kl", "temperature": 20.0,
        "temperature_squared": True,
    },
    "imagenet": {
        "epochs": 300, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.01, "batch_size": 1024,
        "schedule": "cosine", "augmentation": "all:zoom_flip", "cutmix": 1.0, "soft_loss": "kl",
        "temperature": 20.0,
    },
}  # fmt: skip


def nearest(dataset: Dataset, recipe: str) -> str:
    """The dataset whose settings of a recipe serve this one."""
    known = [name for of, name in SETTINGS if of == recipe]
    if dataset.name in known:
        return dataset.name
    side = dataset.shape.height
    return min(known, key=lambda name: abs(math.log(SIZES[name] / side)))


def published(dataset: Dataset, recipe: str) -> Mapping[str, Any]:
    """What serves options that the user did not give."""
    side = dataset.shape.height
    by_size = {
        "jitter": side // 7 if side >= 100 else min(4, side // 7),
        "rded_factor": 2 if side >= 100 else 1,
    }
    settings = {**_USUAL, **by_size, **SETTINGS[recipe, nearest(dataset, recipe)]}
    if side % settings["patches"]:
        settings["patches"] = 1
    return settings


def evaluation_of(dataset: Dataset) -> dict[str, Any]:
    """How networks are trained on recovered images, as SRe2L trains its students."""
    return _EVALUATION[nearest(dataset, "sre2l")]


def fill_in_published(dataset: Dataset, options: RecoverOptions) -> tuple[RecoverOptions, str]:
    """Options with what is published in the place of what was not given, and a line of it."""
    usual = published(dataset, options.recipe)
    known = dict(usual)
    if options.perturb_steps is not AS_PUBLISHED and options.perturb_steps:
        known["perturb_size"] = PERTURB_SIZE
    options, filled = fill_in(options, known)
    near, recipe = nearest(dataset, options.recipe), NAMES[options.recipe]
    whose = f"{recipe} on {near}, as published"
    if near != dataset.name:
        whose = f"not published for {dataset.name}; those of {recipe} on {near}"
    if "perturb_size" in filled and known["perturb_size"] != usual["perturb_size"]:
        whose += f"; perturb_size that of {NAMES['dwa']}"
    words = ", ".join(f"{name} {value}" for name, value in filled.items())
    return options, f"{words} ({whose})" if words else ""


def settled(
    dataset: Dataset, options: RecoverOptions, device: torch.device
) -> tuple[RecoverOptions, str]:
    """Options, checked and filled in, and what was not given in words for the user."""
    options.check()
    options, filled_in = fill_in_published(dataset, options)
    check_effects(dataset, options, published(dataset, options.recipe))
    (options,) = with_precision((options,), device)
    return options, filled_in
