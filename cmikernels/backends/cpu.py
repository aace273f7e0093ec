"""Backend of the native CPU kernel (`csrc/cpu`): fused, threaded, chosen for any CPU tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.backends.operations import native_call
from cmikernels.native import IMPORT_ERROR, native
from cmikernels.problem import Problem
from cmikernels.transforms import refuse_transforms

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
    refuse_transforms(features, problem.centroids, incoming)
    if unless_one and gradient is not None and incoming is not None:
        if incoming.item() == 1 if incoming.dim() == 0 else bool((incoming == 1).all()):
            return
        if gradient.dtype not in _HALF:  # half precision would round a second time
            _multiply(gradient, problem, incoming)
            return
    call, _alive = native_call(features, problem, value, gradient, means, incoming)
    native.cpu_cmi(call, torch.get_num_threads())


def _multiply(gradient: Tensor, problem: Problem, incoming: Tensor) -> None:
    """Scale the rows of the gradient by the incoming numbers of the value or of their classes."""
    if incoming.dim() == 0:
        gradient.mul_(incoming)
    elif problem.classes is None:
        gradient.view(problem.num_classes, -1).mul_(incoming.view(-1, 1))
    else:
        gradient.mul_(incoming[problem.classes.labels].unsqueeze(1))
