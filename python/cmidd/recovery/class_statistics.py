"""Statistics of the real images of each class in teachers, in a file that grows class by class.

`mean of K` and `var of K` (classes, channels) float32: of what enters the batch norms of teacher K,
over all training images of a class and all pixels, the channels of all its norms one after another.
They are measured once, batch by batch, and any number of processes share the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmidd.datasets import Dataset
from cmidd.datasets.streamed import one_after_another
from cmidd.recovery.statistics import Statistics, watched
from cmidd.storage.growing_file import CRC_OF, GrowingFile, check_piece
from cmidd.storage.tensor_file import FileError, opened
from cmikernels.precision import computing

KIND = "set of class statistics"
_BATCH = 100  # images that go through a teacher at once


class ClassStatistics:
    """Those of a complete file, which stay on disk."""

    def __init__(self, path: Path, channels: Sequence[Sequence[int]]) -> None:
        """Name the file, and for each teacher the channels of each of its batch norms."""
        self._path, self._channels = path, channels

    def of(self, labels: Tensor, teacher: int) -> list[Statistics]:
        """The means over images with these labels of the statistics of their classes."""
        classes, counts = torch.unique(labels.cpu(), return_counts=True)
        means = []
        with opened(self._path, KIND) as (file, _):
            for what in ("mean", "var"):
                name = f"{what} of {teacher}"
                found = file.get_slice(name)[int(classes[0]) : int(classes[-1]) + 1]
                crcs = file.get_slice(CRC_OF + name)[int(classes[0]) : int(classes[-1]) + 1]
                if found.shape[1:] != (sum(self._channels[teacher]),):
                    raise FileError(
                        f"{self._path}: expected {sum(self._channels[teacher])} numbers of a class "
                        f"in {name}, got {tuple(found.shape[1:])}"
                    )
                for row, crc in zip(found, crcs, strict=True):
                    check_piece(self._path, name, row, crc)
                rows = found[classes - classes[0]].double()
                means.append((counts.double() @ rows / counts.sum()).float())
        cut = [torch.split(mean, list(self._channels[teacher])) for mean in means]
        return [Statistics(*pair) for pair in zip(*cut, strict=True)]


def channels_of(teacher: nn.Module, dataset: Dataset, device: torch.device) -> list[int]:
    """Channels of each batch norm that a teacher goes through, in order."""
    with torch.no_grad(), watched(teacher) as seen:
        teacher(torch.zeros(2, *dataset.shape, device=device))
    return [len(each.statistics.mean) for each in seen]


def statistics_file(
    path: Path,
    dataset: Dataset,
    channels: Sequence[Sequence[int]],
    about: Mapping[str, Any],
) -> GrowingFile:
    """The file, new or gone on with; `about` tells the teachers apart."""
    items = {
        f"{what} of {number}": torch.empty(sum(of_teacher), device="meta")
        for number, of_teacher in enumerate(channels)
        for what in ("mean", "var")
    }
    return GrowingFile(
        path,
        KIND,
        {**dataset.describe(), **about},
        dataset.num_classes,
        items,
        resume=True,
        what=KIND,
        lower="class_statistics to 0",
    )


@torch.no_grad()
def measure(
    dataset: Dataset,
    teachers: Sequence[nn.Module],
    c: int,
    device: torch.device,
    precision: str | None = None,
) -> dict[str, Tensor]:
    """The statistics of class `c`, by their names in the file."""
    first, last = dataset.train.offsets[c : c + 2].tolist()
    rows = torch.split(torch.arange(first, last), _BATCH)
    totals: list[list[Statistics] | None] = [None] * len(teachers)
    count = 0
    for pixels in one_after_another(dataset.train.source, rows):
        images = dataset.to_input(pixels.to(device))
        share = len(images) / (count + len(images))
        for number, teacher in enumerate(teachers):
            with watched(teacher) as seen, computing(precision, device.type, network=True):
                teacher(images)
            of_batch = [Statistics(*(each.double() for each in s.statistics)) for s in seen]
            before = totals[number]
            totals[number] = (
                of_batch
                if before is None
                else [merged(*pair, share) for pair in zip(before, of_batch, strict=True)]
            )
        count += len(images)
    found = {}
    for number, total in enumerate(totals):
        assert total is not None
        for what in ("mean", "var"):
            numbers = torch.cat([getattr(each, what) for each in total]).float()
            found[f"{what} of {number}"] = numbers
    return found


def merged(one: Statistics, other: Statistics, share: float) -> Statistics:
    """Of two sets of images together, of which the other has this share."""
    apart = other.mean - one.mean
    var = one.var + share * (other.var - one.var) + share * (1 - share) * apart.square()
    return Statistics(one.mean + share * apart, var)
