"""Backend of the CUDA C++ kernels (`csrc/cuda`): NVIDIA GPUs from compute capability 8.0 on.

Tests can have the same kernels on an emulated GPU, for CPU tensors: CMIKERNELS_EMULATE_CUDA=1 in
the environment, and a build with the CMake option of that name.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cmikernels.backends.operations import native_call, on_gpu
from cmikernels.native import IMPORT_ERROR, native
from cmikernels.problem import Problem

NAME = "cuda"
DEVICE_TYPE = "cuda"
_LEAST_CAPABILITY = (8, 0)
_USUAL_WORKSPACE = 64 << 10  # bytes; a call that needs more says how many

# By device and stream: where its blocks take the numbers by which the last one knows that it is.
# A call leaves it at 0, and calls of a stream follow one another.
_counters: dict[tuple[int, int], Tensor] = {}

# The stream as a number, without an object around it.
_current_stream: Callable[[int], int] = getattr(
    torch._C,
    "_cuda_getCurrentRawStream",
    lambda device: torch.cuda.current_stream(device).cuda_stream,
)


@functools.cache
def _core() -> Any:
    """The compiled module that has the kernels, or None."""
    if _emulating():
        try:
            return importlib.import_module("cmikernels._emulated")
        except ImportError:
            return None
    return native if hasattr(native, "cuda_cmi") else None


@functools.cache
def _emulating() -> bool:
    return os.environ.get("CMIKERNELS_EMULATE_CUDA", "") not in ("", "0")


def obstacle(device_type: str) -> str | None:
    """Why this backend cannot serve tensors of that device type; None when it can."""
    if device_type not in ("cpu", "cuda"):
        return "it computes on NVIDIA GPUs only"
    if _emulating():
        return None if _core() else "the native extension was built without the emulated kernels"
    if device_type == "cpu":
        return "it computes on GPUs (and for tests on the CPU, under CMIKERNELS_EMULATE_CUDA=1)"
    try:
        return _gpu_obstacle()
    except RuntimeError as error:  # such as in a process forked from one that uses the GPU
        return str(error)


@functools.cache
def _gpu_obstacle() -> str | None:
    """Nothing here starts a GPU that is not in use."""
    if native is None:
        return f"the native extension is not built ({IMPORT_ERROR}); run: pip install ."
    if _core() is None:
        return (
            "the native extension was built without CUDA kernels, because nvcc of CUDA 12.8 or "
            "newer was not found; set CUDACXX to it and run: "
            "pip install --force-reinstall --no-deps ."
        )
    if torch.version.hip is not None:
        return "it computes on NVIDIA GPUs only"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    info = _core().cuda_info()
    # A driver serves all versions of its major one; the code is packed as 12.4 first could read.
    needed = max(info["runtime"] // 1000 * 1000, 12040)
    if info["driver"] < needed:
        wanted, has = (f"{v // 1000}.{v % 1000 // 10}" for v in (needed, info["driver"]))
        return (
            f"the kernels need a driver that knows CUDA {wanted}, this one knows {has}; update it"
        )
    # One GPU that can is enough; another is refused when it is used.
    found = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if max(found) < _LEAST_CAPABILITY:
        wanted, has = (".".join(map(str, each)) for each in (_LEAST_CAPABILITY, max(found)))
        return f"compute capability {wanted} (Ampere) or newer is needed, this GPU has {has}"
    if not any(_has_code(info["architectures"], 10 * major + minor) for major, minor in found):
        has = ".".join(map(str, max(found)))
        return (
            f"the kernels were built for {info['architectures']}, this GPU has compute capability "
            f"{has}; build them for it with CUDAARCHS={has.replace('.', '')}"
        )
    return None


def _has_code(architectures: str, capability: int) -> bool:
    """Whether code for these (as CMake names them) runs on a GPU of this capability."""
    for name in architectures.split():
        number, _, kind = name.partition("-")
        if not number.isdigit():  # such as "native", or a chip's own variant
            return True
        built = int(number)
        same_family = built // 10 == capability // 10 and kind != "virtual"
        if built <= capability and (same_family or kind != "real"):
            return True
    return False


def describe() -> str:
    """How it will run here."""
    if _emulating():
        return "emulated, very slow"
    built = f"built for {_core().cuda_info()['architectures']}"
    try:
        return f"{torch.cuda.get_device_name()}, {built}"
    except RuntimeError:  # a process forked from one that uses the GPU may not
        return built


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
    """Start what computes the outputs that are given, as `operations.Backend` says."""
    call, _alive = native_call(features, problem, value, gradient, means, incoming)
    device = features.get_device()  # -1 on the CPU
    stream = 0 if device < 0 else _current_stream(device)
    # Of the value of all rows alone: while a graph is captured a counter is a launch.
    summed = value is not None and problem.reduction in ("mean", "sum")
    counter = _counter(features, device, stream) if summed else None
    size = _USUAL_WORKSPACE
    while size:
        workspace = _workspace(features, size)
        besides = {
            "workspace": workspace.data_ptr(),
            "workspace_bytes": size,
            "ticket": 0 if counter is None else counter.data_ptr(),
            "largest": 0 if problem.classes is None else problem.classes.largest,
            "stream": stream,
            "device": 0 if device < 0 else device,
            "unless_one": unless_one,
        }
        size = _core().cuda_cmi(call, besides)


def _workspace(features: Tensor, size: int) -> Tensor:
    """So many bytes of the features' device. They may be freed once the launches are queued."""
    return features.new_empty(size, dtype=torch.uint8)


def _counter(features: Tensor, device: int, stream: int) -> Tensor:
    """Return the stream's; in a graph a new one for each call, because any stream may run it."""
    if device >= 0 and torch.cuda.is_current_stream_capturing():
        return features.new_zeros(1, dtype=torch.int32)
    counter = _counters.get((device, stream))
    if counter is None:
        fresh = features.new_zeros(1, dtype=torch.int32)
        counter = _counters.setdefault((device, stream), fresh)
    return counter
