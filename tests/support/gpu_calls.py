"""Calls that the tests on GPUs make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, fused_cmi
from tests.support.tables import make_features, make_labels

# Classes, rows of each, channels: what fits a program, what does not, and what needs several.
SHAPES = {
    "small classes": (10, 10, 512),
    "larger classes": (10, 50, 512),
    "few large classes": (3, 3000, 512),
    "wide rows": (4, 5, 20_000),
}
HOW = ["grouped", "index"]


def make_call(
    shape: tuple[int, int, int], how: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ClassIndex | None]:
    classes, rows, channels = shape
    if how == "grouped":
        return make_features((classes, rows), channels, dtype=dtype).cuda().requires_grad_(), None
    labels = make_labels([rows - y % 3 for y in range(classes)], shuffle_seed=0)
    z = make_features(len(labels), channels, dtype=dtype).cuda().requires_grad_()
    return z, ClassIndex(labels.cuda(), classes)


def value_and_gradient(
    backend: str,
    z: Tensor,
    classes: ClassIndex | None,
    grad_value: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Through autograd, all of it on the GPU; no graph is kept."""
    value = fused_cmi(z, classes, backend=backend, **options)
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    return value.detach(), gradient


def needs_memory(needed: int) -> None:
    """Skip where the GPU has less to give."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory, has {free / 2**30:.0f}")
