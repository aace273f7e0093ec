"""What a backend is: one verb, `fill`; and the four operations that the op makes of it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from cmikernels.problem import Problem, arithmetic_dtype, as_rows


class Backend(Protocol):
    """What a backend module offers."""

    NAME: str
    DEVICE_TYPE: str  # where it computes

    def obstacle(self, device_type: str) -> str | None:
        """Why this backend cannot serve tensors of that device type; None when it can."""

    def describe(self) -> str:
        """How it will run here, in a few words."""

    def fill(
        self,
        features: Tensor,
        problem: Problem,
        *,
        value: Tensor | None = None,
        gradient: Tensor | None = None,
        means: Tensor | None = None,
        incoming: Tensor | None = None,
        unless_one: bool = False,
    ) -> None:
        """Compute the outputs that are given, all in one pass, on the current device and stream.

        Args:
            features: `(N, M)`, or `(..., C, n, M)` where the problem has no ClassIndex, of any
                strides and with at least one row. It is only read.
            problem: the call.
            value: the reduced value, flat, in the arithmetic dtype.
            gradient: d(sum of value)/d features, or d<incoming, value>/d features, in the shape and
                dtype of the features, contiguous.
            means: `(C, M)` mean probabilities of each class, zeros for a class without rows. Asked
                for only where the problem has no given centroids.
            incoming: the gradient of the value, in the value's shape and dtype, contiguous.
            unless_one: `gradient` holds d(sum of value)/d features already. Leave the gradient as
                it is where `incoming` is 1; the kernel tests this, so the host does not wait.
        """


def forward(
    backend: Backend, features: Tensor, problem: Problem, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Reduced value, flat, and the gradient of its sum where asked for."""
    value = empty_value(features, problem)
    gradient = empty_gradient(features) if with_gradient else None
    _fill(backend, features, problem, value=value, gradient=gradient)
    return value, gradient


def scale(
    backend: Backend, gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor
) -> Tensor:
    """Turn forward's gradient, in its memory, into d<grad_value, value>/d features.

    On a GPU the kernel makes it anew where grad_value is not 1. That moves as many bytes as scaling
    would, needs no second kernel and rounds once.
    """
    incoming = grad_value.contiguous().resolve_neg()
    _fill(backend, features, problem, gradient=gradient, incoming=incoming, unless_one=True)
    return gradient


def backward(backend: Backend, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """d<grad_value, value>/d features from scratch."""
    gradient = empty_gradient(features)
    incoming = grad_value.contiguous().resolve_neg()
    _fill(backend, features, problem, gradient=gradient, incoming=incoming)
    return gradient


def centroids(backend: Backend, features: Tensor, problem: Problem) -> Tensor:
    """Mean probabilities of each class, `(C, M)`; zeros for a class without rows."""
    means = empty_means(features, problem)
    _fill(backend, features, problem, means=means)
    return means


def _fill(backend: Backend, features: Tensor, problem: Problem, **arguments: Any) -> None:
    if problem.num_rows == 0:
        for name in ("value", "means"):
            if arguments.get(name) is not None:
                arguments[name].zero_()
    elif features.is_cuda:
        with torch.cuda.device_of(features):  # type: ignore[no-untyped-call]
            backend.fill(features, problem, **arguments)
    else:
        backend.fill(features, problem, **arguments)


# Outputs for a backend to fill. Their device is said, because a default device may be set.


def empty_value(features: Tensor, problem: Problem) -> Tensor:
    """The reduced value, flat, in the arithmetic dtype."""
    sizes = {"none": (problem.num_rows,), "class": (problem.num_classes,)}
    size = sizes.get(problem.reduction, ())
    return torch.empty(size, dtype=arithmetic_dtype(features.dtype), device=features.device)


def empty_gradient(features: Tensor) -> Tensor:
    """Of the features' shape and dtype, contiguous."""
    return torch.empty(features.shape, dtype=features.dtype, device=features.device)


def empty_means(features: Tensor, problem: Problem) -> Tensor:
    """`(C, M)` in the arithmetic dtype."""
    size = (problem.num_classes, features.shape[-1])
    return torch.empty(size, dtype=arithmetic_dtype(features.dtype), device=features.device)


def in_memory(features: Tensor) -> tuple[Tensor, int, int]:
    """Features as a kernel reads them, and their row and channel strides in elements."""
    if features.is_neg():  # a lazily negated view, whose memory holds the other sign
        features = features.resolve_neg()
    if features.is_contiguous():
        return features, features.shape[-1], 1
    features = as_rows(features)
    row_stride, channel_stride = features.stride()
    return features, row_stride, channel_stride
