"""Cases of MTT that its tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from cmidd.methods.mtt import MTT
from cmidd.options.mtt import MTTOptions
from cmidd.seeds import generator
from tests.support.tiny import CPU

REAL = (7, 12, 4, 9, 6)
NETWORK = "convnet:depth=2,width=8"
EPOCHS = 3
SEED, ITERATION = 3, 5
DSA = "color_crop_cutout_flip_scale_rotate"


def options_of(experts: Path, **changes: Any) -> MTTOptions:
    standard = MTTOptions(
        experts, student_steps=3, expert_epochs=1, max_start_epoch=EPOCHS, batch_syn=None,
        step_size=None, lr_step_size=1e-5,
    )  # fmt: skip
    return replace(standard, **changes)


def labels_of(ipc: int = 2) -> Tensor:
    return torch.arange(len(REAL)).repeat_interleave(ipc)


def images_of(ipc: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ipc * len(REAL), 3, 16, 16, generator=generator("synthetic", ipc)).to(dtype)


def ours(
    experts: Path,
    dtype: torch.dtype = torch.float64,
    *,
    ipc: int = 2,
    seed: int = SEED,
    **changes: Any,
) -> MTT:
    options = options_of(experts, **changes)
    return MTT(random_dataset(REAL, 16), labels_of(ipc), options, seed, CPU, dtype)
