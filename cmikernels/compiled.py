"""The op as `torch.compile` sees it: registered, functional, with fakes and autograd.

    cmikernels::cmi(features, labels, order, offsets, ...) -> (value, gradient)
    cmikernels::cmi_backward(features, ..., grad_value) -> gradient

Eager calls do not come through here (see `cmi.py`). Labels are indexed when the op runs, so a graph
may take labels it has not seen; a ClassIndex saves that work and, on a GPU, its wait.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmikernels.backends import choose_backend, operations
from cmikernels.class_index import ClassIndex
from cmikernels.problem import Problem, arithmetic_dtype, index_for_centroids
from cmikernels.reference import differentiable_gradient


def cmi(features: Tensor, labels: Tensor | None, problem: Problem, backend: str | None) -> Tensor:
    """Call the registered op; `labels` where the problem has no ClassIndex yet.

    The op's own weight stays 1, because every new number among its arguments compiles anew, and a
    weight may follow a schedule. The backward has it in the gradient of the value, a tensor that
    the kernel reads on the device.
    """
    index = problem.classes
    value: Tensor = _cmi(
        features,
        labels if index is None else index.labels,
        None if index is None else index.order,
        None if index is None else index.offsets,
        problem.centroids,
        None if index is None else index._largest,
        problem.num_classes,
        float(problem.temperature),
        1.0,
        problem.reduction,
        backend,
        _keeps_gradient(features, problem.reduction),
    )[0]
    return value * problem.weight


def _keeps_gradient(features: Tensor, reduction: str) -> bool:
    """Whether forward makes the gradient that backward only has to scale.

    On CPUs alone, whose limit is arithmetic. On a GPU that would move 4 N M numbers, since no op
    may hand out its input's memory; the value first and the gradient in the backward move 3 N M and
    keep nothing. Not for "none", whose row weights are not known yet, nor for half precision, where
    scaling would round a second time (and underflow in float16 before a loss scaler could prevent
    it).
    """
    wide = features.dtype in (torch.float32, torch.float64)
    wanted = features.requires_grad and torch.is_grad_enabled()
    return wanted and features.is_cpu and wide and reduction != "none"


def _problem(
    features: Tensor,
    labels: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    centroids: Tensor | None,
    largest: int | None,
    num_classes: int,
    temperature: float,
    weight: float,
    reduction: str,
) -> Problem:
    """Put the flattened arguments together again, indexing labels where that is still to do."""
    rows = features.numel() // features.shape[-1]
    index = None
    if labels is not None:
        if offsets is not None:
            index = ClassIndex.from_parts(labels, order, offsets, largest)
        elif centroids is not None:
            index = index_for_centroids(labels, num_classes)
        else:
            index = ClassIndex(labels, num_classes or None)
        num_classes = index.num_classes
    return Problem(index, rows, num_classes, centroids, temperature, weight, reduction)


# What `_problem` takes, and who computes it. With a schema the functions below need not spell it.
_ARGUMENTS = (
    "Tensor features, Tensor? labels, Tensor? order, Tensor? offsets, Tensor? centroids, "
    "SymInt? largest, SymInt num_classes, float temperature, float weight, str reduction, "
    "str? backend"
)


@torch.library.custom_op(
    "cmikernels::cmi",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool keep_gradient) -> (Tensor, Tensor)",
)
def _cmi(features: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *parts, backend, keep_gradient = arguments
    problem = _problem(features, *parts)
    chosen = choose_backend(backend, features.device.type)
    value, gradient = operations.forward(chosen, features, problem, keep_gradient)
    return value, features.new_empty(0) if gradient is None else gradient


@_cmi.register_fake
def _(features: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    *_, num_classes, _, _, reduction, _, keep_gradient = arguments
    sizes = {"none": (features.numel() // features.shape[-1],), "class": (num_classes,)}
    value = features.new_empty(sizes.get(reduction, ()), dtype=arithmetic_dtype(features.dtype))
    return value, features.new_empty(features.shape if keep_gradient else (0,))


@torch.library.custom_op(
    "cmikernels::cmi_backward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, Tensor grad_value) -> Tensor",
)
def _cmi_backward(features: Tensor, *arguments: Any) -> Tensor:
    *parts, backend, grad_value = arguments
    problem = _problem(features, *parts)
    chosen = choose_backend(backend, features.device.type)
    return operations.backward(chosen, features, problem, grad_value)


@_cmi_backward.register_fake
def _(features: Tensor, *_: Any) -> Tensor:
    return features.new_empty(features.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, labels, order, offsets, centroids, *ctx.options, ctx.backend, keep_gradient = inputs
    gradient = output[1] if keep_gradient else None
    ctx.save_for_backward(features, labels, order, offsets, centroids, gradient)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_value: Tensor, _: None) -> tuple[Tensor | None, ...]:
    *inputs, gradient = ctx.saved_tensors
    features, labels = inputs[:2]
    if torch.is_grad_enabled():
        problem = _problem(*inputs, *ctx.options)
        result = differentiable_gradient(features, problem, grad_value)
    elif gradient is None:
        result = _cmi_backward(*inputs, *ctx.options, ctx.backend, grad_value)
    elif ctx.options[-1] != "class":
        result = gradient * grad_value
    elif labels is None:
        result = gradient * grad_value.view(*features.shape[:-2], 1, 1)
    else:
        result = gradient * grad_value[labels.long()][:, None]
    return result, *[None] * (len(ctx.needs_input_grad) - 1)


_cmi.register_autograd(_backward, setup_context=_setup_context)
