"""A dataset, networks and banks so small that a whole run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.datasets import Dataset, ImageSet
from cmidd.loop import distill
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.dm import DMOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.idc import IDCOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import OF_IDM_ALONE, IIDOptions
from cmidd.options.infonce import InfoNCEOptions
from cmidd.options.mtt import MTTOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.pretrained.experts import Experts, train_experts
from cmidd.run import prepare
from cmidd.seeds import generator
from cmidd.storage.run_folder import RunFolder
from cmidd.synthetic import SyntheticSet

CPU = torch.device("cpu")
NETWORK = "convnet:width=4,depth=1"
CLASSES = ("ant", "bee", "cat")
PER_CLASS = 6


def quiet(text: str) -> None:
    """Listen to nothing."""


def silent(epoch: int, loss: float) -> None:
    """Listen to no epoch."""


def tiny_dataset(name: str = "tiny", *, channels: int = 1, mirror: bool = True) -> Dataset:
    """Random 8 x 8 images, six of each of three classes, brighter from class to class."""
    labels = torch.arange(len(CLASSES)).repeat_interleave(PER_CLASS)
    parts = []
    for part in ("train", "test"):
        noise = torch.rand(len(labels), channels, 8, 8, generator=generator(name, part))
        pixels = (noise + labels[:, None, None, None]) * (255 / len(CLASSES))
        parts.append(ImageSet.from_arrays(pixels.to(torch.uint8), labels, len(CLASSES)))
    statistics = (0.5,) * channels, (0.25,) * channels
    return Dataset(name, parts[0], parts[1], CLASSES, *statistics, mirror=mirror)


def tiny_options(**changes: Any) -> BankOptions:
    """Three networks, trained for two epochs, unless told otherwise."""
    return BankOptions(
        **{"network": NETWORK, "networks": 3, "epochs": 2, "batch_size": 5, **changes}
    )


def tiny_bank(path: Path, dataset: Dataset, **changes: Any) -> Bank:
    """A bank of `tiny_options`, filled."""
    return train_bank(path, dataset, tiny_options(**changes), CPU, say=quiet)


def mcmi_options(source: Path, **changes: Any) -> BankOptions:
    """Two epochs of MCMI of the networks of a bank, unless told otherwise."""
    return BankOptions(
        **{"objective": "mcmi", "from_bank": source, "epochs": 2, "batch_size": 5, **changes}
    )


OPTIONS = DistillOptions(ipc=2, iterations=8, report_every=2, checkpoint_every=3)
DM_OPTIONS = DMOptions(network=NETWORK, batch_real=4)
DSA_OPTIONS = DSAOptions(network=NETWORK, batch_real=3, outer_steps=2, inner_epochs=1)
IDC_OPTIONS = IDCOptions(
    NETWORK, factor=2, batch_real=3, inner_steps=2, metric="mse", batch_net=4, images_net=7,
    cutmix_net=0.5, augmentation="idc:color_crop_cutout",
)  # fmt: skip
IDM_OPTIONS = IDMOptions(
    NETWORK,
    4,
    factor=2,
    accuracy_weight=0.02,
    queue_size=4,
    push_interval=2,
    steps_net=2,
    batch_net=5,
)
NO_CMI = CMIOptions()
CONFIG = {"method": "dm", "ipc": 2}


def expert_options(**changes: Any) -> ExpertOptions:
    """Three experts, trained for two epochs of four steps, unless told otherwise."""
    settings = {"network": NETWORK, "experts": 3, "epochs": 2, "lr": 0.01, "batch_size": 5}
    return ExpertOptions(**{**settings, **changes})


def tiny_experts(path: Path, dataset: Dataset, **changes: Any) -> Experts:
    """Experts of `expert_options`, trained."""
    return train_experts(path, dataset, expert_options(**changes), CPU, say=quiet)


def mtt_options(experts: Path, **changes: Any) -> MTTOptions:
    """Three student steps to match one epoch, with labels learned too."""
    options = {"student_steps": 3, "expert_epochs": 1, "max_start_epoch": 2, "batch_syn": 4}
    return MTTOptions(experts, **{**options, "soft_labels": True, "lr_step_size": 1e-3, **changes})


def iid_options(bank: Path, base: str = "dm") -> IIDOptions:
    """Four real images a class, and weights that make all terms count."""
    of_idm = {name: getattr(IDM_OPTIONS, name) for name in OF_IDM_ALONE if base == "idm"}
    return IIDOptions(
        NETWORK, 4, covariance_weight=1.0, centre_weight=0.5, centre_bank=bank, base=base, **of_idm
    )


def ncfm_options(bank: Path, **changes: Any) -> NCFMOptions:
    """Three real images a class, few frequencies, and a step size that is soon halved."""
    few = {"factor": 2, "batch_real": 3, "frequencies": 32, "optimizer": "adamw", "patience": 1}
    decay = 0.0 if changes.get("optimizer") == "sgd" else 5e-4
    return NCFMOptions(bank, **{"weight_decay": decay, **few, **changes})


def tiny_run(
    path: Path,
    options: DistillOptions = OPTIONS,
    cmi: CMIOptions = NO_CMI,
    *,
    infonce: InfoNCEOptions | None = None,
    method: tuple[str, Any] = ("dm", DM_OPTIONS),
    dataset: Dataset | None = None,
    resume: bool = False,
    say: Callable[[str], None] = quiet,
) -> SyntheticSet:
    """Distil `dataset`, or a tiny one, in the folder `path` by a method and its options."""
    folder = RunFolder(path, CONFIG, resume=resume)
    real = dataset or tiny_dataset()
    of_run = options, method[1], cmi
    run = prepare(method[0], real, *of_run, infonce=infonce, device=CPU, say=say)
    return distill(run, folder, "the command", say)


def check_goes_on_from_its_result(path: Path, run: DistillOptions, name: str, options: Any) -> None:
    """A method whose stored images hold cells begins with its own result, and in no other view."""
    made = tiny_run(path / "one", run, method=(name, options))
    loop = replace(run, init=f"file:{path / 'one'}", iterations=0)
    again = tiny_run(path / "two", loop, method=(name, options))
    assert torch.equal(again.images, made.images)
    other = replace(options, factor=4)
    with pytest.raises(ValueError, match=r"expected images stored with the view .*'factor': 4"):
        tiny_run(path / "three", loop, method=(name, other))
