"""Backend of the Triton kernels: any GPU that Triton serves, and its interpreter on CPU tensors.

`plan.py` chooses kernels and tiles, `launch.py` launches them; `tile.py` has the mathematics, and
`tiles.py`, `rows.py`, `slots.py` and `wide.py` the kernels.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

from cmikernels.backends.operations import on_gpu
from cmikernels.problem import Problem

NAME = "triton"
DEVICE_TYPE = "cuda"  # AMD's too, by torch's name for them
_OLDEST = (3, 4)  # 3.3 hands numbers over as float32, and float64 features lose digits
_LEAST_CAPABILITY = (8, 0)


@functools.cache  # like Triton, which decides when the kernels are imported
def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@functools.cache
def _load() -> tuple[Any, str]:
    """What launches the kernels, or why nothing can. Triton takes a second to import."""
    try:
        triton = importlib.import_module("triton")
        version = tuple(map(int, triton.__version__.split(".")[:2]))
        if version < _OLDEST:
            needed = ".".join(map(str, _OLDEST))
            return None, (
                f"Triton {triton.__version__} is too old: {needed} or newer is needed; "
                "upgrade torch, which brings it"
            )
        return importlib.import_module("cmikernels.backends.triton.launch"), ""
    except Exception as error:  # whatever a broken installation raises
        return None, (
            f"Triton cannot be imported ({type(error).__name__}: {error}); run: pip install triton"
        )


def obstacle(device_type: str) -> str | None:
    """Why this backend cannot serve tensors of that device type; None when it can."""
    if device_type == "cpu":
        if not _interpreting():
            return "it computes on GPUs (and for tests on the CPU, under TRITON_INTERPRET=1)"
    elif device_type != "cuda":
        return "it computes on NVIDIA and AMD GPUs only"
    elif not _interpreting() and (reason := _gpu_obstacle()):
        return reason
    _, error = _load()
    return error or None


@functools.cache
def _gpu_obstacle() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if torch.version.hip is not None:
        return None
    found = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    if found < _LEAST_CAPABILITY:
        needed, has = (".".join(map(str, each)) for each in (_LEAST_CAPABILITY, found))
        return f"compute capability {needed} (Ampere) or newer is needed, this GPU has {has}"
    return None


def describe() -> str:
    """How it will run here."""
    triton = importlib.import_module("triton")
    if _interpreting():
        return f"Triton {triton.__version__}, interpreted, very slow"
    try:
        return f"Triton {triton.__version__} on {torch.cuda.get_device_name()}"
    except RuntimeError:  # a process forked from one that uses the GPU may not
        return f"Triton {triton.__version__}"


@on_gpu
def fill(
    features: Tensor,
    problem: Problem,
    value: Tensor | None,
    gradient: Tensor | None,
    means: Tensor | None,
    incoming: Tensor | None,
    unless_one: bool,
) -> None:
    """Launch what computes the outputs that are given, as `operations.Backend` says."""
    launch, _ = _load()
    launch.Call(features, problem, incoming, unless_one).run(value, gradient, means)
