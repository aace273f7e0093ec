"""One checked call: what every backend computes from, besides the features themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmikernels.class_index import ClassIndex

REDUCTIONS = ("mean", "sum", "class", "none")
FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed and returned in: float64 for float64 features, float32 for the others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_rows(features: Tensor) -> Tensor:
    """`(N, M)` view of the features; copies only where leading axes cannot be folded."""
    return features if features.dim() == 2 else features.reshape(-1, features.shape[-1])


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


@dataclass(slots=True)
class Problem:
    """Everything about a call but the features, checked.

    `classes` None means equal classes whose rows stand together: class y owns the rows
    `y * rows_per_class` to `(y + 1) * rows_per_class`.
    """

    classes: ClassIndex | None
    num_rows: int
    num_classes: int
    centroids: Tensor | None  # (C, M) in the arithmetic dtype
    temperature: float
    weight: float
    reduction: str

    @property
    def rows_per_class(self) -> int:
        """Rows in each class where all classes are equal."""
        return self.num_rows // max(self.num_classes, 1)

    @property
    def row_scale(self) -> float:
        """What a row's KL is multiplied by in the value, where that is one number for all rows."""
        if self.reduction == "mean":
            return self.weight / max(self.num_rows, 1)
        if self.reduction == "class" and self.classes is None:
            return self.weight / max(self.rows_per_class, 1)
        return self.weight

    def row_weights(self, grad_value: Tensor) -> Tensor:
        """Spread the gradient of the reduced value over the rows, `(N,)`: dL/dKL_s."""
        if self.reduction == "none":
            return grad_value.reshape(-1) * self.weight
        if self.reduction != "class":
            return (grad_value * self.row_scale).expand(self.num_rows)
        if self.classes is None:
            return (grad_value.reshape(-1) * self.row_scale).repeat_interleave(self.rows_per_class)
        per_class = grad_value.reshape(-1) * self.weight / self.classes.counts().clamp_min(1)
        return per_class[self.classes.labels]
