"""What the tests run over: backends, dtypes, shapes. A new backend is one line in `DEVICE_OF`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from cmikernels import available_backends

GPU = torch.cuda.is_available()
if not GPU:  # Triton is asked when it is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("CMIKERNELS_EMULATE_CUDA", "1")

DEVICE_OF = {
    "cpu": "cpu",
    "cuda": "cuda" if GPU else "cpu",
    "triton": "cuda" if GPU else "cpu",
    "reference": "cpu",
}
# Thousands of times slower than compiled: shapes are kept small for them.
INTERPRETED = () if GPU else ("cuda", "triton")
BACKENDS = [name for name, status in available_backends().items() if status.available]
DEVICES = tuple(dict.fromkeys(DEVICE_OF[name] for name in BACKENDS))
# The plain formula in torch is the yardstick of the fused ones, not subject to their promises on
# memory, thread counts and forked processes.
FUSED = [name for name in BACKENDS if name != "reference"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF = (torch.bfloat16, torch.float16)
INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
REDUCTIONS = ("mean", "sum", "class", "none")
SPREADS = (1e-3, 1e-2, 0.1, 1.0, 3.0, 10.0, 30.0)

# Both sides of every vector width and block border, and up to 70,000.
CHANNELS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 511, 640)
WIDE_CHANNELS = (1000, 1024, 2048, 4097, 70_000)

CLASS_SIZES: dict[str, tuple[int, ...]] = {
    "one class": (7,),
    "equal": (5, 5, 5, 5),
    "ragged": (1, 9, 4, 2, 17),
    "empty classes": (0, 3, 0, 5, 0),
    "single rows": (1, 1, 1, 1, 1, 1),
    "few large": (300, 211),
    "one large among tiny": (2, 400, 1, 3),
    "many tiny": (2, 1, 3) * 60,
}


def make_features(
    rows: int | Sequence[int],
    channels: int,
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """`(*rows, channels)` normal numbers of a standard deviation, on the CPU."""
    shape = (rows, channels) if isinstance(rows, int) else (*rows, channels)
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)


def make_labels(sizes: Sequence[int], shuffle_seed: int | None = None) -> Tensor:
    """Labels of classes of those sizes: class by class, or shuffled."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    if shuffle_seed is None:
        return labels
    generator = torch.Generator().manual_seed(shuffle_seed)
    return labels[torch.randperm(labels.numel(), generator=generator)]


def make_probabilities(shape: Sequence[int], seed: int = 1) -> Tensor:
    """Normalised float32 probabilities along the last axis."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator).softmax(-1)
