"""Backend of last resort: the formula in plain torch on any device, in float64 and so slow."""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.backends.operations import empty_value
from cmikernels.problem import Problem, as_rows
from cmikernels.reference import closed_form_gradient, reference_centroids, reference_cmi

NAME = "reference"
DEVICE_TYPE = "cpu"  # among others


def obstacle(device_type: str) -> str | None:
    """It runs anywhere."""
    return None


def describe() -> str:
    """How it will run here."""
    return "plain torch in float64, any device, slow"


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
    rows = as_rows(features.detach())
    if value is not None:
        value.copy_(reference_cmi(rows, problem))
    if means is not None:
        means.copy_(reference_centroids(rows, problem))
    if gradient is None or (unless_one and incoming is not None and bool((incoming == 1).all())):
        return
    if incoming is None:
        incoming = torch.ones_like(empty_value(features, problem))
    result = closed_form_gradient(rows, problem, problem.row_weights(incoming))
    gradient.copy_(result.view(features.shape))
