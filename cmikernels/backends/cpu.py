"""Backend of the native CPU kernel (`csrc/cpu`): fused, threaded, chosen for any CPU tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.backends.operations import (
    empty_centroids,
    empty_gradient,
    empty_value,
    in_memory,
)
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


def forward(
    features: Tensor, problem: Problem, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Value and gradient of its sum in one pass."""
    value = empty_value(features, problem)
    gradient = empty_gradient(features) if with_gradient else None
    _run(features, problem, value=value, gradient=gradient)
    return value, gradient


def scale(gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """Multiply in place, or not at all by 1. Half precision is made anew: it would round twice."""
    if grad_value.dim() == 0:
        if grad_value.item() == 1.0:
            return gradient
    elif bool((grad_value == 1).all()):
        return gradient
    if gradient.dtype in _HALF:
        return backward(features, problem, grad_value)
    if grad_value.dim() == 0:
        return gradient.mul_(grad_value)
    if problem.classes is None:
        rows = gradient.view(problem.num_classes, -1)
        rows.mul_(grad_value.view(-1, 1))
        return gradient
    return gradient.mul_(grad_value[problem.classes.labels].unsqueeze(1))


def backward(features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """Gradient of the rows' divergences with the weights that grad_value gives them."""
    gradient = empty_gradient(features)
    row_weights = problem.row_weights(grad_value).contiguous()
    _run(features, problem, gradient=gradient, row_weights=row_weights)
    return gradient


def centroids(features: Tensor, problem: Problem) -> Tensor:
    """Mean probabilities of each class, `(C, M)`; zeros for a class without rows."""
    result = empty_centroids(features, problem)
    _run(features, problem, mean_probabilities=result)
    return result


def _run(
    features: Tensor,
    problem: Problem,
    *,
    value: Tensor | None = None,
    gradient: Tensor | None = None,
    row_weights: Tensor | None = None,
    mean_probabilities: Tensor | None = None,
) -> None:
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
        address(row_weights),
        problem.temperature,
        problem.weight,
        REDUCTION_CODES[problem.reduction],
        address(value),
        address(gradient),
        address(mean_probabilities),
        torch.get_num_threads(),
    )
