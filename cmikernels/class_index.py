"""Which rows belong to which class: labels checked and sorted once, used by every kernel.

Format: `offsets` (C + 1) bounds each class in a list of rows sorted by class; `order` (N) is that
list. `order` is None where the rows already stand class by class, so that kernels need no gather.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.native import has_memory, native
from cmikernels.transforms import refuse_vmap, transforms_are_active

_INTEGER_DTYPES = frozenset(
    (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    )
)


class ClassIndex:
    """The rows of each class, built and checked once.

    Args:
        labels: class of every row, `(N,)`, any integer dtype, any order.
        num_classes: number of classes, with or without rows. Default: largest label + 1.

    Building one reads the labels, which on a GPU waits for the device. Calls that are handed a
    `ClassIndex` never do, so build it outside the loop when the labels do not change.

    Example:
        >>> classes = ClassIndex(torch.tensor([2, 0, 2, 0, 0]))
        >>> classes.num_classes, classes.counts()
        (3, tensor([3, 0, 2]))
    """

    __slots__ = ("_largest", "labels", "num_classes", "num_rows", "offsets", "order")

    labels: Tensor
    """Class of each row, `(N,)` int64."""
    offsets: Tensor
    """Class y owns the sorted positions `offsets[y]` to `offsets[y + 1]`; `(C + 1,)` int64."""
    order: Tensor | None
    """Row at each sorted position, `(N,)` int64; None where the rows are sorted already."""
    num_classes: int
    """C, the number of classes."""
    num_rows: int
    """N, the number of rows."""
    _largest: int | None  # rows of the largest class, where known

    def __init__(self, labels: Tensor, num_classes: int | None = None) -> None:
        check_labels(labels)
        if num_classes is not None:
            check_num_classes(num_classes)
        # A copy, so that the index stays what it was when the caller's labels change.
        labels = labels.to(torch.int64, copy=True, memory_format=torch.contiguous_format)
        self.labels, self.num_rows = labels, labels.shape[0]
        low, high = (0, -1) if self.num_rows == 0 else _bounds(labels)
        self.num_classes = high + 1 if num_classes is None else num_classes
        if low < 0 or high >= self.num_classes:
            bad = low if low < 0 else high
            raise ValueError(
                f"classes: labels must lie in [0, num_classes) = [0, {self.num_classes}), got {bad}"
            )
        self.offsets, self.order, self._largest = _group(labels, self.num_classes)

    @classmethod
    def from_parts(
        cls, labels: Tensor, order: Tensor | None, offsets: Tensor, largest: int | None
    ) -> ClassIndex:
        """Put together what another ClassIndex was made of; nothing is read or checked."""
        index = object.__new__(cls)
        index.labels, index.order, index.offsets, index._largest = labels, order, offsets, largest
        index.num_classes, index.num_rows = offsets.numel() - 1, labels.numel()
        return index

    @property
    def device(self) -> torch.device:
        """Where the index lives; features must be on the same device."""
        return self.labels.device

    @property
    def largest(self) -> int:
        """Number of rows of the largest class. Known from the start where reading it would wait."""
        if self._largest is None:
            self._largest = int(self.counts().max()) if self.num_classes else 0
        return self._largest

    def to(self, device: torch.device | str) -> ClassIndex:
        """The same index on another device."""
        order = None if self.order is None else self.order.to(device)
        parts = self.labels.to(device), order, self.offsets.to(device)
        return self.from_parts(*parts, self.largest)

    def counts(self) -> Tensor:
        """Number of rows of each class, `(C,)` int64."""
        return self.offsets.diff()

    def __repr__(self) -> str:
        layout = "sorted" if self.order is None else "gathered"
        return (
            f"ClassIndex(num_rows={self.num_rows}, num_classes={self.num_classes}, "
            f"{layout}, device='{self.device}')"
        )


def check_num_classes(num_classes: int) -> None:
    """Raise unless `num_classes` is a positive int."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: expected an int, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")


def check_labels(labels: Tensor, name: str = "classes") -> None:
    """Raise unless `labels` is a 1-d integer tensor."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{name}: expected a tensor of labels or a ClassIndex, got {type(labels).__name__}"
        )
    if labels.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"{name}: expected labels of an integer dtype, got {labels.dtype}")
    if labels.dim() != 1:
        raise ValueError(f"{name}: expected labels of shape (N,), got {tuple(labels.shape)}")
    refuse_vmap(
        name,
        labels,
        "call once for each, or give equal classes at once as features (..., C, n, M)",
    )


def _natively(labels: Tensor) -> bool:
    """Whether the compiled core is here and may read the labels."""
    if native is None or labels.device.type != "cpu" or transforms_are_active():
        return False
    return has_memory(labels)


def _bounds(labels: Tensor) -> tuple[int, int]:
    """Smallest and largest of at least one label."""
    if _natively(labels):
        low, high = native.label_bounds(labels.data_ptr(), labels.shape[0])
    else:
        low, high = torch.stack(torch.aminmax(labels)).tolist()
    return low, high


def _group(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None, int | None]:
    """`offsets`, `order` and, where it cannot be had later for little, the largest class's size."""
    rows = labels.shape[0]
    offsets = torch.empty(num_classes + 1, dtype=torch.int64, device=labels.device)
    if _natively(labels):
        order = torch.empty_like(labels)
        pointers = offsets.data_ptr(), order.data_ptr()
        is_sorted = native.index_labels(labels.data_ptr(), rows, num_classes, *pointers)
        return offsets, None if is_sorted else order, None
    counts = torch.bincount(labels, minlength=num_classes)
    offsets[0] = 0
    torch.cumsum(counts, 0, out=offsets[1:])
    in_order = (labels[1:] >= labels[:-1]).all().to(torch.int64)
    most = counts.max() if num_classes else in_order
    sorted_already, largest = torch.stack([in_order, most]).tolist()  # one wait for both
    return offsets, None if sorted_already else torch.argsort(labels, stable=True), largest
