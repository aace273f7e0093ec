"""Backend of the native CPU kernel (`csrc/cpu`): fused, threaded, chosen for any CPU tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.backends.operations import in_memory
from cmikernels.native import DTYPE_CODES, IMPORT_ERROR, REDUCTION_CODES, address, native
from cmikernels.problem import Problem

NAME = "cpu"
DEVICE_TYPE = "cpu"
_HALF = (torch.bfloat16, torch.float16)


def obstacle(device_type: str) -> str | None:
    """Why this backend cannot serve tensors of that device type; None when it can."""
    if device_type != "cpu":
        return "it computes CPU tensors only"
    if native is None:
        return f"the native extension is not built ({IMPORT_ERROR}); run: pip install ."
    return None


def describe() -> str:
    """How it will run here."""
    info = native.cpu_info()
    return f"{info['isa']} kernels, {torch.get_num_threads()} threads ({info['threading']})"


def fill(
    features: Tensor,
    problem: Problem,
    *,
    value: Tensor | None = None,
    gradient: Tensor | None = None,
    means: Tensor | None = None,
    incoming: Tensor | None = None,
    unless_one: bool = False,
) -> None:
    """Compute the outputs that are given, as `operations.Backend` says."""
    if unless_one and gradient is not None and incoming is not None:
        if bool(incoming == 1 if incoming.dim() == 0 else (incoming == 1).all()):
            return
        if gradient.dtype not in _HALF:  # half precision would round a second time
            _multiply(gradient, problem, incoming)
            return
    classes, order, offsets = problem.classes, 0, 0
    if classes is not None:
        offsets = classes.offsets.data_ptr()
        order = address(classes.order)
    channels = features.shape[-1]
    features, row_stride, channel_stride = in_memory(features)
    native.cpu_cmi(
        features.data_ptr(),
        DTYPE_CODES[features.dtype],
        problem.num_rows,
        channels,
        row_stride,
        channel_stride,
        problem.num_classes,
        order,
        offsets,
        address(problem.centroids),
        address(incoming),
        problem.temperature,
        problem.weight,
        REDUCTION_CODES[problem.reduction],
        address(value),
        address(gradient),
        address(means),
        torch.get_num_threads(),
    )


def _multiply(gradient: Tensor, problem: Problem, incoming: Tensor) -> None:
    """Scale the rows of the gradient by the incoming numbers of the value or of their classes."""
    if incoming.dim() == 0:
        gradient.mul_(incoming)
    elif problem.classes is None:
        gradient.view(problem.num_classes, -1).mul_(incoming.view(-1, 1))
    else:
        gradient.mul_(incoming[problem.classes.labels].unsqueeze(1))
