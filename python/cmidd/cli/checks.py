"""What is looked at before a command reads data: spelling of names, and files that are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from cmidd import label_file
from cmidd.augment import Strategy
from cmidd.device import precision_on, usable_device
from cmidd.first_images import INITS
from cmidd.networks import NetworkSpec
from cmidd.options.commands import DataOptions
from cmidd.options.fields import AS_PUBLISHED, Options
from cmidd.pretrained import bank, experts
from cmidd.storage.growing_file import check_complete
from cmidd.storage.tensor_file import opened, record_of
from cmidd.synthetic import KIND as SYNTHETIC_SET
from cmidd.synthetic import file_of


def check_names(parts: Sequence[Options]) -> None:
    """Raise where what an option names is no such thing."""
    for part in parts:
        for field in fields(part):
            look = LOOKS.get(field.metadata.get("names", ""))
            value = getattr(part, field.name)
            if look is None or value is None or value is AS_PUBLISHED:
                continue
            for each in value if isinstance(value, tuple) else (value,):
                _look(field.name, look, each)


def check_precision(parts: Sequence[Options]) -> None:
    """Raise where the device has not the precision that is asked for."""
    given = {field.name: getattr(part, field.name) for part in parts for field in fields(part)}
    for name in ("precision", "cmi_precision"):
        if given.get(name) is not None:
            precision_on(usable_device(given["device"]), given[name], name)


def check_command(command: str) -> None:
    """Raise where ranks cannot share a command."""
    if command not in SHARED:
        raise ValueError(
            f"ranks: {command} runs in one process; start it without torchrun, which is for "
            f"{', '.join(SHARED)}"
        )


def wants_gpu(parts: Sequence[Options]) -> bool:
    """Whether a command is to run on GPUs, as far as can be told without trying."""
    name = _device_of(parts)
    return torch.cuda.is_available() and (name is None or name.startswith("cuda"))


def check_devices(parts: Sequence[Options]) -> None:
    """Raise where ranks cannot compute on the device that is asked for; else make it current."""
    name = _device_of(parts)
    alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"
    if name not in (None, "cpu", "cuda") and not (alone and str(name).startswith("cuda:")):
        raise ValueError(f"device: expected cpu or cuda, of which each rank takes one, got {name}")
    device = usable_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _device_of(parts: Sequence[Options]) -> str | None:
    (part,) = (each for each in parts if isinstance(each, DataOptions))
    return part.device


def _look(name: str, look: Callable[[Any], object], value: Any) -> None:
    try:
        look(value)
    except (OSError, ValueError) as error:
        text = str(error).removeprefix(f"{name}: ")
        raise ValueError(f"{name}: {text}") from None


def _look_at_network(spec: str) -> None:
    try:
        NetworkSpec.parse(spec)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"network {spec!r}: ")) from None


def _look_at_first_images(init: str) -> None:
    if init.startswith("file:"):
        path = file_of(Path(init.removeprefix("file:")))
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a synthetic set or the checkpoint of a run, found none at {path}"
            )
    elif init not in INITS:
        raise ValueError(f"expected {', '.join(INITS)} or file:PATH, got {init}")


def _look_at_file(kind: str, maker: str) -> Callable[[Path], None]:
    def look(path: Path) -> None:
        check_complete(path, kind)
        if not path.is_file():
            raise FileNotFoundError(
                f"expected a file with a {kind}, found none at {path}; {maker} makes one"
            )
        with opened(path, kind):
            pass

    return look


def _look_at_teacher(path: Path) -> None:
    """A bank, or a state dict, of which only the dataset tells whether it fits."""
    if not path.is_file() or record_of(path):
        _look_at_file(bank.KIND, "cmidd pretrain")(path)


def _look_at_set(path: Path) -> None:
    file = file_of(path)
    if "," in str(path) and not file.exists():
        raise FileNotFoundError(
            f"expected paths with spaces between them, a b and not a,b; found none at {path}"
        )
    _look_at_file(SYNTHETIC_SET, "cmidd distill")(file)


SHARED = ("distill", "pretrain", "experts", "recover", "relabel", "evaluate")
"""Commands whose work ranks share."""

LOOKS: dict[str, Callable[[Any], object]] = {
    "augmentation": Strategy.parse,
    "bank": _look_at_file(bank.KIND, "cmidd pretrain"),
    "device": usable_device,
    "experts": _look_at_file(experts.KIND, "cmidd experts"),
    "first images": _look_at_first_images,
    "labels": _look_at_file(label_file.KIND, "cmidd relabel"),
    "network": _look_at_network,
    "set": _look_at_set,
    "teacher": _look_at_teacher,
}
"""By what an option `names`."""
