"""Write the published settings as files, from what the methods of `cmidd` have as published.

Those of teachers, which no method has, stand here.

Run it as `python examples/configs/make.py` after a change of them; a test compares the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cmidd.datasets import Dataset, ImageSet
from cmidd.methods import METHODS, Options, cmi_weight, fill_in_published
from cmidd.methods.mtt import SETTINGS
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.iid import IIDOptions
from cmidd.options.mtt import MTTOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.options.pretrained import BankOptions

HERE = Path(__file__).parent
IMAGES = {"cifar10": (10, 32), "cifar100": (100, 32), "svhn": (10, 32), "tinyimagenet": (200, 64)}
"""Classes, and height and width of images."""
METHODS_OF = {
    "cifar10": ("dm", "dc", "dsa", "mtt", "idc", "idm", "iid", "iid-idm", "ncfm"),
    "cifar100": ("dm", "dsa", "mtt", "idc", "idm", "ncfm"),
    "svhn": ("dm", "dsa", "idc"),
    "tinyimagenet": ("mtt", "idm", "ncfm"),
}
ALL_THREE = ("dm", "dc", "dsa", "mtt", "idc", "idm", "ncfm")
IPCS: dict[str, tuple[int, ...]] = dict.fromkeys(ALL_THREE, (1, 10, 50))
IPCS |= {"iid": (10,), "iid-idm": (10,)}
TEACHERS = {
    "cifar100": BankOptions(
        "imagenet_resnet18:stem=small", 1, 200, 0.1, weight_decay=5e-4, batch_size=128,
        augmentation="all:crop_flip", schedule="cosine",
    ),
    "tinyimagenet": BankOptions(
        "imagenet_resnet18:stem=small", 1, 50, 0.2, weight_decay=1e-4,
        augmentation="all:zoom_flip", schedule="cosine", warm_up=5,
    ),
}  # fmt: skip
"""As SRe2L trains them; for ImageNet it takes torchvision's weights."""
NO_PART_OF_IT = {
    "seed",
    "report_every",
    "checkpoint_every",
    "compile",
    "precision",
    "real_dtype",
    "cmi_precision",
    "cmi_chunk",
}
"""Options that choose the draws, the speed, the memory and what is written, and not the method."""


def stand_in(name: str) -> Dataset:
    """A dataset of the shape and classes of the real one, which need not be there."""
    classes, size = IMAGES[name]
    images = np.zeros((classes, size, size, 3), np.uint8)
    part = ImageSet.from_arrays(images, np.arange(classes), classes)
    return Dataset.known(name, part, part, tuple(map(str, range(classes))))


def config_of(name: str, setting: str, ipc: int) -> tuple[str, str]:
    """The path below this folder, and the text, of a published setting: a method, and its base."""
    method, _, base = setting.partition("-")
    has_cmi = ipc > 1 and name in METHODS[method].cmi_weights.published
    stem = f"{setting}-ipc{ipc}{'-cmi' if has_cmi else ''}"
    values: dict[str, Any] = {"method": method, "dataset": name}
    first: list[str] = []
    if method == "mtt":
        file, whitened = f"runs/{name}/experts.safetensors", SETTINGS[name, ipc].whitened
        values["zca"], zca = whitened, " --zca" if whitened else ""
        first.append(f"cmidd experts --dataset {name}{zca} --out {file}")
        given: Options = MTTOptions(Path(file))
    elif method == "iid":
        file = f"runs/{name}/iid-bank.safetensors"
        first.append(f"cmidd pretrain --dataset {name} --weight_decay 0.0005 --out {file}")
        given = IIDOptions(centre_bank=Path(file), base=base or "dm")
    elif method == "ncfm":
        file = f"runs/{name}/pairs.safetensors"
        network = "convnet:depth=4" if IMAGES[name][1] == 64 else "convnet"
        first.append(
            f"cmidd pretrain --dataset {name} --network {network} --epochs 60 --weight_decay "
            "0.0005 --batch_size 128 --augmentation idc:color_crop --cutmix 0.5 --drop_at 0.666 "
            f"0.833 --drop_by 5 --out {file}"
        )
        given = NCFMOptions(Path(file))
    else:
        given = METHODS[method].options()
    loop, options, _ = fill_in_published(method, stand_in(name), ipc, DistillOptions(ipc), given)
    values |= {"out": f"runs/{name}/{stem}", **asdict(loop)}
    if has_cmi:
        bank = Path(f"runs/{name}/bank.safetensors")
        first.append(f"cmidd pretrain --dataset {name} --out {bank}")
        values |= asdict(CMIOptions(bank, cmi_weight(method, name, ipc).value))
    values |= asdict(options)
    path = f"{name}/{stem}.yaml"
    comments = [f"cmidd distill {method} --config examples/configs/{path}"]
    comments += [f"first: {command}" for command in first]
    head = "".join(f"# {line}\n" for line in comments)
    return path, head + as_file(values)


def config_of_teacher(name: str, options: BankOptions) -> tuple[str, str]:
    """The path below this folder, and the text, of the settings of a teacher."""
    values = {"dataset": name, "out": f"runs/{name}/teacher.safetensors", **options.as_record()}
    path = f"{name}/teacher.yaml"
    head = f"# cmidd pretrain --config examples/configs/{path}\n"
    return path, head + as_file(values)


def as_file(values: Mapping[str, Any]) -> str:
    """The text of options that are given."""
    plain = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in values.items()
        if value is not None and key not in NO_PART_OF_IT
    }
    return str(yaml.safe_dump(plain, sort_keys=False))


def configs() -> Iterator[tuple[str, str]]:
    """Path and text of every file."""
    yield from (config_of_teacher(*teacher) for teacher in TEACHERS.items())
    for name, settings in METHODS_OF.items():
        for setting in settings:
            for ipc in IPCS[setting]:
                yield config_of(name, setting, ipc)


if __name__ == "__main__":
    for path, text in configs():
        (HERE / path).parent.mkdir(exist_ok=True)
        (HERE / path).write_text(text)
