"""CMI of rows that lie on several ranks, by two all-reduces forward and none backward.

    sum_s P_s and n_y   of each class's rows on this rank, then on all   C (M + 1) numbers
    Q_y                 the sum of all ranks, over its own sum
    sum_s KL_s          of each class's rows on this rank, then on all   C numbers in float64

Given Q, the gradient of a row needs nothing of the others. Kernels read Q rounded to the type they
compute in. What this moves the mean KL of a class by is known from both, and is put back: where
classes are tight it would be a visible part of the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmikernels.backends import operations
from cmikernels.backends.operations import Backend
from cmikernels.problem import Problem, arithmetic_dtype
from cmikernels.reference import oracle_dtype


def cmi(features: Tensor, problem: Problem, backend: Backend, group: dist.ProcessGroup) -> Tensor:
    """The reduced value of all ranks' rows, flat, differentiable once by those of this rank."""
    value: Tensor = _CMIOfRanks.apply(features, problem, backend, group)  # type: ignore[no-untyped-call]
    return value


def cmi_value_and_grad(
    features: Tensor, problem: Problem, backend: Backend, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """The reduced value of all ranks' rows, flat, and its gradient by those of this rank."""
    share = share_of(features, problem, backend, group)
    value, gradient = (
        operations.empty_value(features, share.problem),
        operations.empty_gradient(features),
    )
    backend.fill(features, share.problem, value=value, gradient=gradient, incoming=share.factors)
    return _of_all(value, share, problem.reduction, group), gradient


class _CMIOfRanks(torch.autograd.Function):
    """The value now, the gradient from scratch when its factor is known."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, problem: Problem, backend: Backend, group: dist.ProcessGroup
    ) -> Tensor:
        share = share_of(features, problem, backend, group)
        ctx.save_for_backward(features)
        ctx.share, ctx.backend = share, backend
        value, _ = operations.forward(backend, features, share.problem, False)
        return _of_all(value, share, problem.reduction, group)

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fused_cmi with process_group: expected a first derivative, got a backward with "
                "create_graph; a second one has to send sums, so take it in one process"
            )
        (features,), share = ctx.saved_tensors, ctx.share
        incoming = share.factors * grad_value
        gradient = operations.backward(ctx.backend, features, share.problem, incoming)
        return gradient, None, None, None


@dataclass(frozen=True, eq=False)
class Share:
    """What a rank has to do of a call."""

    problem: Problem
    """The mean KL of each class's rows on this rank, to given centroids."""
    factors: Tensor
    """What this mean is multiplied by in the value of all rows, `(C,)`."""
    correction: Tensor
    """What is added to this mean, because its centroids are rounded, `(C,)`."""


def check_group(group: dist.ProcessGroup, reduction: str) -> None:
    """Raise unless this process can take its part of a call."""
    if reduction == "none":
        raise ValueError(
            "reduction: expected mean, sum or class with process_group, because rows of a class "
            "that weigh unequally would have to be sent in the backward; got 'none'"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "process_group: expected a group of torch.distributed that this process is part of, "
            f"such as torch.distributed.group.WORLD after init_process_group; got {group!r}"
        )


def share_of(
    features: Tensor, problem: Problem, backend: Backend, group: dist.ProcessGroup
) -> Share:
    """What this rank has to do, after all ranks have told what classes they have."""
    wide, narrow = oracle_dtype(features.device), arithmetic_dtype(features.dtype)
    if problem.classes is None:
        here = torch.full((problem.num_classes,), problem.rows_per_class, device=features.device)
    else:
        here = problem.classes.counts()
    here = here.to(wide)
    sums = here.to(narrow, copy=True)[:, None]
    if problem.centroids is None:
        means = operations.centroids(backend, features, problem)
        sums = torch.cat([sums, means * sums], dim=1)
    dist.all_reduce(sums, group=group)
    sums = sums.to(wide)
    everywhere = sums[:, 0]
    given, correction = problem.centroids, torch.zeros_like(here)
    if given is None:
        exact = sums[:, 1:]
        exact = exact / exact.sum(dim=1, keepdim=True).masked_fill(everywhere[:, None] == 0, 1)
        given = exact.to(narrow).clamp_min(torch.finfo(narrow).tiny)  # as kernels read it
        ratio = (given - exact) / exact
        correction = torch.where(exact > 0, exact * ratio.log1p(), 0).sum(dim=1)
    factors = here
    if problem.reduction == "mean":
        factors = here / everywhere.sum().clamp_min(1)
    elif problem.reduction == "class":
        factors = here / everywhere.clamp_min(1)
    if problem.centroids is None:
        factors = factors.masked_fill(everywhere == 1, 0)  # a row alone is its own centroid
    of_rank = replace(problem, centroids=given, reduction="class")
    return Share(of_rank, factors.to(narrow), correction * problem.weight)


def _of_all(value: Tensor, share: Share, reduction: str, group: dist.ProcessGroup) -> Tensor:
    """The reduced value of all ranks' rows, of `value` (C,) of this rank's."""
    parts = (value + share.correction) * share.factors
    dist.all_reduce(parts, group=group)
    return (parts if reduction == "class" else parts.sum()).to(value.dtype)
