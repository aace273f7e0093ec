"""The device to compute on, and the precision that suits it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from cmidd.options.fields import Options

_NAMES = ("precision", "cmi_precision")


def usable_device(name: torch.device | str | None = None) -> torch.device:
    """A device that is there; without a name a GPU where there is one, else the CPU.

    Of several GPUs, cuda is the one that torchrun gives this rank.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if str(name) == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, RuntimeError) as error:  # what torch raises where there is none
        why = str(error).partition("\n")[0]
        raise ValueError(f"device: {name} cannot be used here: {why}") from None


def has_tf32(device: torch.device) -> bool:
    """Whether convolutions can be computed in TF32 there."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def precision_on(device: torch.device, given: str | None, name: str = "precision") -> str:
    """The given precision; where none is given, tf32 on a GPU that has it, else float32.

    `name` is that of the option, for messages.
    """
    if given is None:
        return "tf32" if has_tf32(device) else "float32"
    if given == "tf32" and not has_tf32(device):
        raise ValueError(
            f"{name}: expected float32 or bfloat16 on {device}, got tf32, which NVIDIA GPUs of "
            "compute capability 8.0 and newer have"
        )
    return given


def with_precision(parts: Sequence[Options], device: torch.device) -> list[Any]:
    """Options with a precision in the place of one that is not given; a device has to have it."""
    return [_with_precision(part, device) for part in parts]


def _with_precision(options: Options, device: torch.device) -> Options:
    known = {each.name: getattr(options, each.name) for each in fields(options)}
    if "bank" in known and known["bank"] is None:  # options of CMI where there is none
        return options
    found = {name: precision_on(device, known[name], name) for name in _NAMES if name in known}
    return replace(options, **found)
