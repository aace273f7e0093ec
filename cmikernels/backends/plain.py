"""Backend of last resort: the formula in plain torch on any device, in float64 and so slow."""

from __future__ import annotations

from torch import Tensor

from cmikernels.problem import Problem, arithmetic_dtype, as_rows
from cmikernels.reference import (
    closed_form_gradient,
    log_centroids,
    log_probabilities,
    reference_cmi,
)

NAME = "reference"
DEVICE_TYPE = "cpu"  # among others


def obstacle(device_type: str) -> str | None:
    """It runs anywhere."""
    return None


def describe() -> str:
    """How it will run here."""
    return "plain torch in float64, any device, slow"


def forward(
    features: Tensor, problem: Problem, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Value, and no gradient: backward makes it."""
    value = reference_cmi(as_rows(features.detach()), problem)
    return value.to(arithmetic_dtype(features.dtype)), None


def scale(gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """Forward makes no gradient, so there is nothing to scale but a new one."""
    return backward(features, problem, grad_value)


def backward(features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """The closed form."""
    row_weights = problem.row_weights(grad_value)
    result = closed_form_gradient(as_rows(features.detach()), problem, row_weights)
    return result.to(features.dtype).contiguous().view(features.shape)


def centroids(features: Tensor, problem: Problem) -> Tensor:
    """Mean probabilities of each class, `(C, M)`, differentiable."""
    log_p = log_probabilities(as_rows(features), problem.temperature)
    return log_centroids(log_p, problem).exp().to(arithmetic_dtype(features.dtype))
