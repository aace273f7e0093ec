"""What a recovery refuses before it begins, by the name of the option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.options.recover import RecoverCMIOptions, RecoverOptions
from cmidd.rded import CANDIDATES
from cmidd.recovery.batches import Batches
from cmidd.recovery.class_statistics import channels_of


def check_effects(dataset: Dataset, options: RecoverOptions, usual: Mapping[str, Any]) -> None:
    """Raise where an option was given that would change nothing.

    Args:
        dataset: the real images.
        options: filled in.
        usual: what is filled in for options that are not given.
    """
    if options.perturb_steps and not options.perturb_size:
        raise ValueError("perturb_size: expected more than 0 with perturb_steps, got 0")
    strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
    zooms, falls = "zoom" in strategy.operations, options.curriculum != "none"
    if falls and options.zoom_from < options.zoom:
        raise ValueError(
            f"zoom_from: expected at least zoom, {options.zoom:g}, from which the area falls, got "
            f"{options.zoom_from:g}"
        )
    of_distance = ("first_bn_weight", "var_weight", "class_statistics", "average")
    idle: list[tuple[bool, tuple[str, ...], str]] = [
        (not options.perturb_steps, ("perturb_size",), "perturb_steps"),
        (not zooms, ("zoom", "curriculum"), "the operation zoom in augmentation"),
        (not (zooms and falls), ("zoom_from", "curriculum_share"), "a curriculum"),
        (not options.bn_weight, of_distance, "bn_weight"),
        (options.start != "rded", ("rded_factor",), "start rded"),
    ]
    known = {each.name: each.default for each in fields(options)} | dict(usual)
    for is_idle, names, needed in idle:
        for name in names:
            value = getattr(options, name)
            if is_idle and value not in (known[name], "none", 0):
                raise ValueError(
                    f"{name}: {value} would change nothing without {needed}; give that too, or "
                    f"leave {name} out"
                )


def check_fits(dataset: Dataset, options: RecoverOptions) -> None:
    """Raise where parts do not divide an image, or a class has too few images to start from."""
    _, height, width = dataset.shape
    factors = ["patches", *(["rded_factor"] if options.start == "rded" else [])]
    for name in factors:
        factor = getattr(options, name)
        if height % factor or width % factor:
            raise ValueError(
                f"{name}: expected a number that divides {height} x {width} pixels, got {factor}"
            )
    if options.start == "noise":
        return
    cells = options.rded_factor**2 if options.start == "rded" else 1
    most = CANDIDATES if options.start == "rded" else torch.inf
    there, c = (int(each) for each in dataset.train.offsets.diff().min(0))
    if options.ipc * cells <= min(most, there):
        return
    where = f"class {dataset.class_names[c]} of {dataset.name} has {there} real images"
    if options.start == "real":
        raise ValueError(f"ipc: {where}, fewer than {options.ipc}; take fewer or start from noise")
    raise ValueError(
        f"ipc: expected at most {int(min(most, there)) // cells} with start rded and rded_factor "
        f"{options.rded_factor}, as {where}, of which it takes up to {CANDIDATES}, got "
        f"{options.ipc}; take a smaller ipc or rded_factor"
    )


def check_cmi(batches: Batches, options: RecoverOptions, cmi: RecoverCMIOptions) -> None:
    """Raise where CMI is asked for and would be 0."""
    if cmi.cmi_weight and batches.of_each == 1:
        name = "order" if options.order == "image" else "ipc" if options.ipc == 1 else "batch_size"
        raise ValueError(
            f"{name}: {getattr(options, name)} gives a batch one image of each class, whose CMI is "
            "0; take order class and more images, or cmi_weight 0"
        )


def check_teachers(
    teachers: Sequence[nn.Module], dataset: Dataset, options: RecoverOptions, device: torch.device
) -> None:
    """Raise where images are to match statistics and a teacher's forward meets no batch norm."""
    if not (options.bn_weight and options.iterations):
        return
    if not all(channels_of(teacher, dataset, device) for teacher in teachers):
        files = " ".join(map(str, options.teacher))
        raise ValueError(
            f"teacher: expected networks with batch norm, whose statistics images are to match, "
            f"got one without in {files}; train such ones (cmidd pretrain "
            "--network=resnet18:norm=batch), or give bn_weight 0"
        )
