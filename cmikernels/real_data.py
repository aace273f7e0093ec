"""A pass over real data: the forms it may be handed over in, and class means over its batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]


def as_batches(data: Tensor | Batches, labels: Tensor | None, size: int | None) -> Batches:
    """Images with their labels, `size` at a time; or batches as they are, checked one by one."""
    if isinstance(data, Tensor):
        if labels is None:
            raise TypeError("labels: expected the label of each image beside images, got None")
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels: expected a tensor of labels, got {type(labels).__name__}")
        if labels.shape != data.shape[:1]:
            raise ValueError(
                f"labels: expected one for each of the {len(data)} images, "
                f"got shape {tuple(labels.shape)}"
            )
        rows = max(len(data), 1) if size is None else size
        return zip(torch.split(data, rows), torch.split(labels, rows), strict=True)
    if labels is not None:
        raise TypeError(
            "labels: expected with a tensor of images only, because batches hold their own, got "
            f"{type(labels).__name__} beside {type(data).__name__}"
        )
    if isinstance(data, (str, bytes, nn.Module)) or not isinstance(data, Iterable):
        raise TypeError(
            "batches: expected images and their labels, or batches of both (a list, a "
            f"DataLoader), got {type(data).__name__}"
        )
    return _pairs(data)


def _pairs(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise TypeError(
                f"batches: expected pairs of images and labels, got {type(batch).__name__}{size}"
            )
        yield batch[0], batch[1]


class RunningMeans:
    """Means of rows class by class, `(..., C, M)`, of batches whose classes may become more."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts = torch.zeros(0, 1, dtype=torch.float64)

    def add(self, means: Tensor, counts: Tensor) -> None:
        """Take the class means `(..., C, M)` of a batch and how many rows each is of, `(C,)`."""
        rows = counts.double()[:, None]
        sums = means * rows
        if self._sums is None:
            self._sums, self._counts = sums, rows
            return
        classes = max(len(rows), len(self._counts))
        self._sums = _with_classes(self._sums, classes) + _with_classes(sums, classes)
        self._counts = _with_classes(self._counts, classes) + _with_classes(rows, classes)

    def result(self, num_classes: int | None) -> Tensor:
        """The means, or the error that tells which classes had no rows."""
        counts = _with_classes(self._counts, num_classes or max(len(self._counts), 1))
        missing = counts.flatten().eq(0).nonzero().flatten().tolist()
        if missing or self._sums is None:
            raise ValueError(f"batches: expected images of every class, got none of {missing}")
        return self._sums / counts


def _with_classes(tensor: Tensor, classes: int) -> Tensor:
    """`(..., C, M)` with zeros for the classes that are not there yet."""
    return nn.functional.pad(tensor, (0, 0, 0, classes - tensor.shape[-2]))
