"""What backends are made of: features as kernels read them, outputs for kernels to fill.

`Operations` is what a GPU backend offers, made of the one thing it does: fill the outputs that are
given.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cmikernels.problem import Problem, arithmetic_dtype, as_rows


def in_memory(features: Tensor) -> tuple[Tensor, int, int]:
    """Features as a kernel reads them, and their row and channel strides in elements."""
    if features.is_neg():  # a lazily negated view, whose memory holds the other sign
        features = features.resolve_neg()
    if features.is_contiguous():
        return features, features.shape[-1], 1
    features = as_rows(features)
    row_stride, channel_stride = features.stride()
    return features, row_stride, channel_stride


# Outputs for a kernel to fill. Their device is said, because a default device may be set.


def empty_value(features: Tensor, problem: Problem) -> Tensor:
    """The reduced value, flat, in the arithmetic dtype."""
    sizes = {"none": (problem.num_rows,), "class": (problem.num_classes,)}
    size = sizes.get(problem.reduction, ())
    return torch.empty(size, dtype=arithmetic_dtype(features.dtype), device=features.device)


def empty_gradient(features: Tensor) -> Tensor:
    """Of the features' shape and dtype, contiguous."""
    return torch.empty(features.shape, dtype=features.dtype, device=features.device)


def empty_centroids(features: Tensor, problem: Problem) -> Tensor:
    """`(C, M)` in the arithmetic dtype."""
    size = (problem.num_classes, features.shape[-1])
    return torch.empty(size, dtype=arithmetic_dtype(features.dtype), device=features.device)


class Run(Protocol):
    """Start the kernels that fill the outputs, on the current stream of the features' device.

    There is at least one row. `incoming` is the gradient of the value; with `skip_one` the gradient
    is right already where that is 1, which the device finds out.
    """

    def __call__(
        self,
        features: Tensor,
        problem: Problem,
        value: Tensor | None,
        gradient: Tensor | None,
        means: Tensor | None,
        incoming: Tensor | None,
        skip_one: bool,
    ) -> None:
        """Fill `value`, `gradient` and `means`, those of them that are not None."""


class Operations:
    """The part of `Backend` that computes."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def forward(
        self, features: Tensor, problem: Problem, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Value and gradient of its sum, made together."""
        value = empty_value(features, problem)
        gradient = empty_gradient(features) if with_gradient else None
        self._fill(features, problem, value=value, gradient=gradient)
        return value, gradient

    def scale(
        self, gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor
    ) -> Tensor:
        """Make the gradient anew in place, where the device finds grad_value other than 1.

        That moves as many bytes as scaling would, needs no second kernel and rounds once.
        """
        self._fill(features, problem, gradient=gradient, incoming=grad_value, skip_one=True)
        return gradient

    def backward(self, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
        """Gradient of the rows' divergences with the weights that grad_value gives them."""
        gradient = empty_gradient(features)
        self._fill(features, problem, gradient=gradient, incoming=grad_value)
        return gradient

    def centroids(self, features: Tensor, problem: Problem) -> Tensor:
        """Mean probabilities of each class, `(C, M)`; zeros for a class without rows."""
        result = empty_centroids(features, problem)
        self._fill(features, problem, means=result)
        return result

    def _fill(
        self,
        features: Tensor,
        problem: Problem,
        *,
        value: Tensor | None = None,
        gradient: Tensor | None = None,
        means: Tensor | None = None,
        incoming: Tensor | None = None,
        skip_one: bool = False,
    ) -> None:
        if problem.num_rows == 0:
            for output in (value, means):
                if output is not None:
                    output.zero_()
            return
        with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
            self._run(features, problem, value, gradient, means, incoming, skip_one)
