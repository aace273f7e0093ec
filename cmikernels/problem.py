"""One checked call: what every backend computes from, and the checks that lead to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cmikernels.class_index import ClassIndex, check_labels, check_num_classes
from cmikernels.native import has_memory

REDUCTIONS = ("mean", "sum", "class", "none")
FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed and returned in: float64 for float64 features, float32 for the others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_rows(features: Tensor) -> Tensor:
    """`(N, M)` view of the features; copies only where leading axes cannot be folded."""
    return features if features.dim() == 2 else features.reshape(-1, features.shape[-1])


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


def check_options(temperature: float, weight: float, reduction: str) -> None:
    """Raise where an option is none that the kernels can compute with."""
    for name, number in (("temperature", temperature), ("weight", weight)):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{name}: expected a number, got {type(number).__name__}")
    # Beyond these bounds 1 / tau or the scaled gradient leaves float32.
    if not 1e-30 <= temperature <= 1e30:
        raise ValueError(f"temperature: expected a number in [1e-30, 1e30], got {temperature}")
    if not -1e30 <= weight <= 1e30:
        raise ValueError(f"weight: expected a finite number in [-1e30, 1e30], got {weight}")
    if abs(weight) / temperature > 1e30:
        raise ValueError(
            f"weight: expected at most 1e30 times temperature {temperature}, got {weight}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def checked_call(
    features: Tensor,
    classes: Tensor | ClassIndex | None,
    num_classes: int | None,
    centroids: Tensor | None,
    temperature: float,
    weight: float,
    reduction: str,
    lazy: bool = False,
) -> tuple[Problem, Tensor | None]:
    """The call as a `Problem`, or the error that says what is wrong with it.

    With `lazy` (a compiler is tracing) a labels tensor is handed back unread, for the registered op
    to index at run time; num_classes is then 0 where nothing tells it.
    """
    check_dense("features", features)
    if features.dtype not in FEATURE_DTYPES:
        raise TypeError(
            "features: expected float32, bfloat16, float16 or float64, "
            f"got {str(features.dtype).removeprefix('torch.')}"
        )
    check_options(temperature, weight, reduction)
    if num_classes is not None:
        check_num_classes(num_classes)
    shape = features.shape
    labels: Tensor | None = None
    index: ClassIndex | None = None
    if classes is None:
        if features.dim() < 3:
            raise ValueError(
                "features: expected (..., C, n, M) where classes is not given, "
                f"got shape {tuple(shape)}; pass classes= for (N, M)"
            )
        if num_classes is not None and num_classes != shape[-3]:
            raise ValueError(
                f"num_classes: features of shape {tuple(shape)} hold {shape[-3]} classes, "
                f"got {num_classes}"
            )
        class_shape = shape[:-2]
        num_rows, num_classes = math.prod(shape[:-1]), math.prod(class_shape)
    else:
        if features.dim() != 2:
            raise ValueError(
                f"features: expected (N, M) where classes is given, got shape {tuple(shape)}"
            )
        rows_of_centroids: int | None = None
        if num_classes is None and isinstance(classes, Tensor) and centroids is not None:
            num_classes = rows_of_centroids = _rows_of_centroids(centroids)
        if isinstance(classes, ClassIndex):
            index, indexed_rows, device = classes, classes.num_rows, classes.device
            if num_classes is not None and num_classes != index.num_classes:
                raise ValueError(
                    f"num_classes: classes is a ClassIndex of {index.num_classes} classes, "
                    f"got {num_classes}"
                )
            num_classes = index.num_classes
        else:
            check_labels(classes)
            indexed_rows, device = classes.shape[0], classes.device
        num_rows = shape[0]
        if indexed_rows != num_rows:
            raise ValueError(
                f"classes: expected one label for each of the {num_rows} rows of features, "
                f"got {indexed_rows}"
            )
        if device != features.device:
            raise ValueError(
                f"classes: expected on the features' device {features.device}, got {device}"
            )
        if isinstance(classes, Tensor):
            if lazy:
                labels = classes
                if num_classes is None and reduction == "class":
                    raise ValueError(
                        "num_classes: expected a number under torch.compile with labels and "
                        "reduction 'class', got None"
                    )
            else:
                if rows_of_centroids is None:
                    index = ClassIndex(classes, num_classes)
                else:
                    index = index_for_centroids(classes, rows_of_centroids)
                num_classes = index.num_classes
        class_shape = torch.Size((num_classes or 0,))
    if shape[-1] == 0:
        raise ValueError(f"features: expected at least one channel, got shape {tuple(shape)}")
    if centroids is not None:
        centroids = _check_centroids(centroids, features, class_shape)
    problem = Problem(index, num_rows, num_classes or 0, centroids, temperature, weight, reduction)
    return problem, labels


def index_for_centroids(labels: Tensor, rows: int) -> ClassIndex:
    """Labels indexed into as many classes as given centroids have rows."""
    try:
        return ClassIndex(labels, rows)
    except ValueError:
        wide = labels.to(torch.int64)  # unsigned ones have no min
        if wide.dim() != 1 or int(wide.min()) < 0:
            raise
        raise ValueError(
            f"centroids: expected a row for each of the {int(wide.max()) + 1} classes of the "
            f"labels (or more), got {rows}"
        ) from None


def check_memory(features: Tensor) -> None:
    """Raise unless the features are a plain tensor, which a kernel can read."""
    if not has_memory(features):
        raise TypeError(
            "features: expected a plain tensor with memory of its own, "
            f"got a {type(features).__name__} (or a trace of one)"
        )


def check_dense(name: str, tensor: object) -> None:
    """Raise unless it is a tensor that is neither sparse nor of another such layout."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {layout}")


def _rows_of_centroids(centroids: Tensor) -> int:
    """Number of classes that centroids are for, where nothing else tells it."""
    check_dense("centroids", centroids)
    if centroids.dim() != 2 or centroids.shape[0] == 0:
        raise ValueError(
            "centroids: expected shape (C, M) with at least one class, "
            f"got {tuple(centroids.shape)}"
        )
    return centroids.shape[0]


def _check_centroids(centroids: Tensor, features: Tensor, class_shape: torch.Size) -> Tensor:
    """Centroids as `(C, M)` contiguous in the arithmetic dtype."""
    check_dense("centroids", centroids)
    if centroids.dtype not in FEATURE_DTYPES:
        raise TypeError(f"centroids: expected a floating-point tensor, got {centroids.dtype}")
    if centroids.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "centroids: they are taken as constants and get no gradient, but this tensor requires "
            "one; pass centroids.detach()"
        )
    if centroids.device != features.device:
        raise ValueError(
            f"centroids: expected on the features' device {features.device}, got {centroids.device}"
        )
    channels = features.shape[-1]
    full = (*class_shape, channels)
    if tuple(centroids.shape) not in (full, full[-2:]):
        raise ValueError(f"centroids: expected shape {full}, got {tuple(centroids.shape)}")
    centroids = centroids.detach().to(arithmetic_dtype(features.dtype))
    return centroids.expand(full).reshape(-1, channels).contiguous().resolve_neg()
