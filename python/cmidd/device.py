"""The device to compute on."""

from __future__ import annotations

import torch


def usable_device(name: torch.device | str | None = None) -> torch.device:
    """A device that is there; without a name a GPU where there is one, else the CPU.

    What is computed on it from now on is float32 where it says so. By default torch computes
    convolutions in TF32 on newer GPUs, and the gradient of CMI lives on differences that the 10
    bits of TF32 round away.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, RuntimeError) as error:  # what torch raises where there is none
        why = str(error).partition("\n")[0]
        raise ValueError(f"device: {name} cannot be used here: {why}") from None
