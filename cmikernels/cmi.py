"""The public op: class-aware conditional mutual information and its gradient, fused.

    P_s = softmax(z_s / tau)                     row distribution
    Q_y = mean of P_s over the rows of class y   class centroid, or a given one
    KL_s = sum_j P_sj (log P_sj - log Q_yj)
    CMI = (1/N) sum_s KL_s                       reduction "mean"
    dCMI/dz_sj = P_sj (log P_sj - log Q_yj - KL_s) / (N tau)

In eager mode one `torch.autograd.Function` serves a call; under `torch.compile` a registered op
does (`compiled.py`), because Function costs half as much per call and only an op is opaque to the
compiler. `bench/kernels/overhead.py` measures both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from cmikernels import compiled, distributed
from cmikernels.backends import choose_backend, operations
from cmikernels.backends.operations import Backend
from cmikernels.class_index import ClassIndex, check_num_classes
from cmikernels.native import has_memory
from cmikernels.probabilities import check_call
from cmikernels.problem import (
    Problem,
    arithmetic_dtype,
    as_rows,
    check_memory,
    check_options,
    checked_call,
)
from cmikernels.reference import differentiable_gradient, reference_centroids, reference_cmi
from cmikernels.transforms import (
    has_tangent,
    refuse_func_grad,
    refuse_vmap,
    transforms_are_active,
)


def fused_cmi(
    features: Tensor,
    classes: Tensor | ClassIndex | None = None,
    *,
    num_classes: int | None = None,
    centroids: Tensor | None = None,
    temperature: float = 1.0,
    weight: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Class-aware conditional mutual information of `features`, differentiable.

    Args:
        features: `(N, M)` with `classes`; or `(..., C, n, M)` without, where every class has n rows
            that stand together (a leading axis is several networks). float32, bfloat16, float16 or
            float64, any strides.
        classes: label of each row, `(N,)` of any integer dtype in any order, or a `ClassIndex`
            built once. Classes may be ragged or empty.
        num_classes: number of classes when `classes` is a labels tensor; default largest + 1.
        centroids: compare with these `(C, M)` or `(..., C, M)` probabilities instead of the rows'
            own class means, as `class_centroids` gives them. Taken as constants; an entry below the
            smallest normal number counts as that number, so that the value stays finite. Rows
            that do not sum to 1 within 0.01 are refused, but not under `torch.compile` nor on a
            GPU, where reading them would wait for the device.
        temperature: the softmax's tau.
        weight: factor on the value and the gradient (the published lambda).
        reduction: "mean" over rows, "sum", "class" (mean of each class, `(C,)` or `(..., C)`; 0 for
            a class without rows) or "none" (per row).
        backend: name from `available_backends()`; default the first of them that can serve the
            tensor's device, or the environment's `CMIKERNELS_BACKEND`.
        process_group: of torch.distributed, whose ranks each give some of the rows, of whatever
            classes. Options and the number of classes, a ClassIndex's too, are the same on all.
            Value and gradient are those of all rows in one process. `DistributedDataParallel`
            divides gradients by the number of ranks, so multiply the loss by it there. Not under
            `torch.compile`, not for "none", and differentiable once. None: all rows are here.

    Returns:
        The value, float64 for float64 features, else float32. Gradients have the features' dtype.
        Forward computes both in one pass when a gradient is needed.

    Example:
        >>> features = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]], requires_grad=True)
        >>> loss = fused_cmi(features, torch.tensor([0, 0, 1]), weight=3.0)
        >>> loss.backward()
        >>> round(loss.item(), 3), features.grad.shape
        (1.206, torch.Size([3, 2]))
    """
    if process_group is not None:
        given = num_classes, centroids, temperature, weight, reduction
        value, _ = _of_ranks(features, classes, given, backend, process_group, False)
        return value
    if torch.compiler.is_compiling() or not has_memory(features):
        problem, labels = checked_call(
            features, classes, num_classes, centroids, temperature, weight, reduction, lazy=True
        )
        value = compiled.cmi(features, labels, problem, backend)
        return _shape_value(value, features, problem)
    problem, _ = checked_call(
        features, classes, num_classes, centroids, temperature, weight, reduction
    )
    if centroids is not None and centroids.is_cpu:
        check_call(centroids)
    chosen = choose_backend(backend, features.device.type)
    if has_tangent(features):
        value = reference_cmi(as_rows(features), problem).to(arithmetic_dtype(features.dtype))
    elif features.requires_grad and torch.is_grad_enabled():
        if transforms_are_active():
            refuse_vmap("features", features, "give all at once as features (..., C, n, M)")
            refuse_func_grad("features", features)
        value = _FusedCMI.apply(features, problem, chosen)  # type: ignore[no-untyped-call]
    else:
        value, _ = operations.forward(chosen, features, problem, False)
    return _shape_value(value, features, problem)


def cmi_value_and_grad(
    features: Tensor,
    classes: Tensor | ClassIndex | None = None,
    *,
    num_classes: int | None = None,
    centroids: Tensor | None = None,
    temperature: float = 1.0,
    weight: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Value of `fused_cmi` and d(sum of value)/d features in one pass, without autograd.

    Takes what `fused_cmi` takes. The gradient has the features' shape and dtype.

    Example:
        >>> features = torch.randn(2, 5, 64)  # two classes of five rows each
        >>> value, gradient = cmi_value_and_grad(features)
        >>> value.shape, gradient.shape
        (torch.Size([]), torch.Size([2, 5, 64]))
    """
    if process_group is not None:
        given = num_classes, centroids, temperature, weight, reduction
        value, gradient = _of_ranks(features, classes, given, backend, process_group, True)
        assert gradient is not None
        return value, gradient
    problem, _ = checked_call(
        features, classes, num_classes, centroids, temperature, weight, reduction
    )
    check_memory(features)
    if centroids is not None and centroids.is_cpu:
        check_call(centroids)
    chosen = choose_backend(backend, features.device.type)
    if features.requires_grad:
        features = features.detach()
    value, gradient = operations.forward(chosen, features, problem, True)
    assert gradient is not None
    return _shape_value(value, features, problem), gradient


def class_centroids(
    features: Tensor,
    classes: Tensor | ClassIndex | None = None,
    *,
    num_classes: int | None = None,
    temperature: float = 1.0,
    backend: str | None = None,
) -> Tensor:
    """Mean softmax probabilities of each class, `(C, M)` or `(..., C, M)`, ready for `centroids=`.

    Takes features and classes as `fused_cmi` does. A class without rows gets zeros. Differentiable:
    where a gradient is needed the plain formula computes it.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [9.0, -9.0], [9.0, -9.0]])
        >>> class_centroids(features, torch.tensor([0, 1, 1])).round(decimals=2)
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    problem, _ = checked_call(features, classes, num_classes, None, temperature, 1.0, "mean")
    check_memory(features)
    chosen = choose_backend(backend, features.device.type)
    if features.requires_grad and torch.is_grad_enabled():
        result = reference_centroids(features, problem).to(arithmetic_dtype(features.dtype))
    else:
        result = operations.centroids(chosen, features, problem)
    return result.view(*features.shape[:-2], features.shape[-1]) if classes is None else result


class CMILoss(nn.Module):
    """`fused_cmi` as a module: options at construction, features and classes in the call.

    Example:
        >>> criterion = CMILoss(weight=2000.0, num_classes=3)
        >>> features = torch.randn(6, 64, requires_grad=True)
        >>> criterion(features, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
        >>> features.grad.shape
        torch.Size([6, 64])
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        temperature: float = 1.0,
        weight: float = 1.0,
        reduction: str = "mean",
        backend: str | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if num_classes is not None:
            check_num_classes(num_classes)
        check_options(temperature, weight, reduction)
        self.num_classes = num_classes
        self.temperature = temperature
        self.weight = weight
        self.reduction = reduction
        self.backend = backend
        self.process_group = process_group

    def forward(
        self,
        features: Tensor,
        classes: Tensor | ClassIndex | None = None,
        *,
        centroids: Tensor | None = None,
    ) -> Tensor:
        """The weighted CMI of `features`; see `fused_cmi`."""
        return fused_cmi(
            features,
            classes,
            num_classes=self.num_classes,
            centroids=centroids,
            temperature=self.temperature,
            weight=self.weight,
            reduction=self.reduction,
            backend=self.backend,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        """Options that differ in meaning, for `print(module)`."""
        return (
            f"num_classes={self.num_classes}, temperature={self.temperature}, "
            f"weight={self.weight}, reduction={self.reduction!r}, backend={self.backend!r}"
        )


class _FusedCMI(torch.autograd.Function):
    """Value now, gradient made in the same pass and handed out once.

    The gradient buffer belongs to this node alone, so a first backward may scale it in place; a
    second one (`retain_graph=True`) computes it anew. A backward that must itself be differentiable
    goes through the plain formula.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, problem: Problem, backend: Backend) -> Tensor:
        # The rows' weights in "none" are known in the backward only.
        in_one_pass = problem.reduction != "none"
        value, ctx.gradient = operations.forward(backend, features, problem, in_one_pass)
        ctx.save_for_backward(features, problem.centroids)
        ctx.problem, ctx.backend = problem, backend
        return value

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor, None, None]:
        problem, backend = ctx.problem, ctx.backend
        features, _ = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_gradient(features, problem, grad_value), None, None
        gradient = ctx.__dict__.pop("gradient", None)
        if problem.reduction == "none":
            return operations.backward(backend, features, problem, grad_value), None, None
        if gradient is None:  # handed out before
            _, gradient = operations.forward(backend, features, problem, True)
        return operations.scale(backend, gradient, features, problem, grad_value), None, None


@_disable_dynamo  # which cannot trace what ranks send one another
def _of_ranks(
    features: Tensor,
    classes: Tensor | ClassIndex | None,
    given: tuple[int | None, Tensor | None, float, float, str],
    backend: str | None,
    group: ProcessGroup,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """A call with a process group: the value, differentiable or with its gradient."""
    num_classes, centroids, _, _, reduction = given
    distributed.check_group(group, reduction)
    if isinstance(classes, Tensor) and num_classes is None and centroids is None:
        raise ValueError(
            "num_classes: expected a number with process_group, because the labels of one rank "
            "need not show all classes; got None"
        )
    problem, _ = checked_call(features, classes, *given)
    check_memory(features)
    if centroids is not None and centroids.is_cpu:
        check_call(centroids)
    chosen = choose_backend(backend, features.device.type)
    gradient = None
    if with_gradient:
        value, gradient = distributed.cmi_value_and_grad(features.detach(), problem, chosen, group)
    else:
        value = distributed.cmi(features, problem, chosen, group)
    return _shape_value(value, features, problem), gradient


def _shape_value(value: Tensor, features: Tensor, problem: Problem) -> Tensor:
    if features.dim() == 2 or value.dim() == 0:
        return value
    leading = features.shape[:-2] if problem.reduction == "class" else features.shape[:-1]
    return value.view(leading)
