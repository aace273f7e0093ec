"""What a backend is: one verb, `fill`; and the four operations that the op makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from cmikernels.native import DTYPE_CODES, REDUCTION_CODES, address
from cmikernels.problem import Problem, arithmetic_dtype, as_rows
from cmikernels.transforms import refuse_transforms


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
        """Compute the outputs that are given, all in one pass, on the device's current stream.

        Args:
            features: `(N, M)`, or `(..., C, n, M)` where the problem has no ClassIndex, of any
                strides. It is only read.
            problem: the call.
            value: the reduced value, flat, in the arithmetic dtype.
            gradient: d(sum of value)/d features, or d<incoming, value>/d features, in the shape and
                dtype of the features, contiguous.
            means: `(C, M)` mean probabilities of each class, zeros for a class without rows. Asked
                for only where the problem has no given centroids.
            incoming: the gradient of the value, in the value's shape and dtype, of any strides.
            unless_one: `gradient` holds d(sum of value)/d features already. Leave the gradient as
                it is where `incoming` is 1; the kernel tests this, so the host does not wait.
        """


def forward(
    backend: Backend, features: Tensor, problem: Problem, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Reduced value, flat, and the gradient of its sum where asked for."""
    value = empty_value(features, problem)
    gradient = empty_gradient(features) if with_gradient else None
    backend.fill(features, problem, value=value, gradient=gradient)
    return value, gradient


def scale(
    backend: Backend, gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor
) -> Tensor:
    """Turn forward's gradient, in its memory, into d<grad_value, value>/d features.

    On a GPU the kernel makes it anew where grad_value is not 1. That moves as many bytes as scaling
    would, needs no second kernel and rounds once.
    """
    backend.fill(features, problem, gradient=gradient, incoming=grad_value, unless_one=True)
    return gradient


def backward(backend: Backend, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """d<grad_value, value>/d features from scratch."""
    gradient = empty_gradient(features)
    backend.fill(features, problem, gradient=gradient, incoming=grad_value)
    return gradient


def centroids(backend: Backend, features: Tensor, problem: Problem) -> Tensor:
    """Mean probabilities of each class, `(C, M)`; zeros for a class without rows."""
    means = empty_means(features, problem)
    backend.fill(features, problem, means=means)
    return means


def on_gpu(fill: Callable[..., None]) -> Callable[..., None]:
    """A backend's `fill`, run on the features' device and only where there are rows.

    Args:
        fill: takes the arguments of `Backend.fill` in their order.
    """

    @functools.wraps(fill)
    def guarded(
        features: Tensor,
        problem: Problem,
        *,
        value: Tensor | None = None,
        gradient: Tensor | None = None,
        means: Tensor | None = None,
        incoming: Tensor | None = None,
        unless_one: bool = False,
    ) -> None:
        refuse_transforms(features, problem.centroids, incoming)
        if problem.num_rows == 0:
            for output in (value, means):
                if output is not None:
                    output.zero_()
            return
        on_device_of(features, fill, problem, value, gradient, means, incoming, unless_one)

    return guarded


def on_device_of(tensor: Tensor, function: Callable[..., None], *arguments: Any) -> None:
    """Call with the tensor and the arguments, while the tensor's device is the current one."""
    device = tensor.get_device()  # -1 on the CPU
    if device < 0 or device == torch.cuda.current_device():
        function(tensor, *arguments)
    else:
        with torch.cuda.device(device):
            function(tensor, *arguments)


# Outputs for a backend to fill. They are made from the features, because a default device may be
# set. `size` is named, because torch takes 0.5 us longer to read a tuple without a name.


def empty_value(features: Tensor, problem: Problem) -> Tensor:
    """The reduced value, flat, in the arithmetic dtype."""
    size: tuple[int, ...] = ()
    if problem.reduction == "none":
        size = (problem.num_rows,)
    elif problem.reduction == "class":
        size = (problem.num_classes,)
    return features.new_empty(size=size, dtype=arithmetic_dtype(features.dtype))


def empty_gradient(features: Tensor) -> Tensor:
    """Of the features' shape and dtype, contiguous."""
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def empty_means(features: Tensor, problem: Problem) -> Tensor:
    """`(C, M)` in the arithmetic dtype."""
    size = (problem.num_classes, features.shape[-1])
    return features.new_empty(size=size, dtype=arithmetic_dtype(features.dtype))


# What kernels read.


def in_memory(features: Tensor) -> tuple[Tensor, int, int]:
    """Features as a kernel reads them, and their row and channel strides in elements."""
    if features.is_neg():  # a lazily negated view, whose memory holds the other sign
        features = features.resolve_neg()
    if features.is_contiguous():
        return features, features.shape[-1], 1
    features = as_rows(features)
    row_stride, channel_stride = features.stride()
    return features, row_stride, channel_stride


def in_order(incoming: Tensor) -> Tensor:
    """An incoming gradient as a kernel reads it: it may be expanded or lazily negated."""
    return incoming.contiguous().resolve_neg()


def native_call(
    features: Tensor,
    problem: Problem,
    value: Tensor | None,
    gradient: Tensor | None,
    means: Tensor | None,
    incoming: Tensor | None,
) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
    """A call as the native core takes it, by the names of `cmik_problem` in cmikernels.h.

    The tensors that come with it may be copies. They have to live until the call has returned.
    """
    classes, centroids = problem.classes, problem.centroids
    features, row_stride, channel_stride = in_memory(features)
    if incoming is not None:
        incoming = in_order(incoming)
    call = {
        "features": features.data_ptr(),
        "rows": problem.num_rows,
        "channels": features.shape[-1],
        "row_stride": row_stride,
        "channel_stride": channel_stride,
        "classes": problem.num_classes,
        "order": 0 if classes is None else address(classes.order),
        "offsets": 0 if classes is None else classes.offsets.data_ptr(),
        "centroids": 0 if centroids is None else centroids.data_ptr(),
        "incoming": 0 if incoming is None else incoming.data_ptr(),
        "temperature": problem.temperature,
        "weight": problem.weight,
        "value": 0 if value is None else value.data_ptr(),
        "gradient": 0 if gradient is None else gradient.data_ptr(),
        "means": 0 if means is None else means.data_ptr(),
        "dtype": DTYPE_CODES[features.dtype],
        "reduction": REDUCTION_CODES[problem.reduction],
    }
    return call, (features, incoming)
