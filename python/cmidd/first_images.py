"""What distilled images start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.datasets.streamed import all_of, rows_of
from cmidd.seeds import generator
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.tensor_file import kind_of, read_tensors
from cmidd.synthetic import SyntheticSet, file_of
from cmidd.view import View

INITS = ("noise", "real", "mix", "cells", "smooth_cells")
"""What images may start from, beside those of a file."""


def class_by_class(dataset: Dataset, ipc: int) -> Tensor:
    """Labels of `ipc` images of each class."""
    return torch.arange(dataset.num_classes).repeat_interleave(ipc)


def first_images(
    dataset: Dataset,
    ipc: int,
    init: str,
    seed: int,
    *,
    count_option: str = "ipc",
    view: View | None = None,
) -> tuple[Tensor, Tensor]:
    """First images, normalised and class by class, and their labels.

    Args:
        dataset: where real images come from.
        ipc: images per class.
        init: "noise" (normal numbers), "real" (real images of the class, each once), "mix" (two
            real images of the class mixed, in a share drawn for each), "cells" (real images made
            smaller, one in each cell of the view and each once), "smooth_cells" (the same, made
            smaller bilinearly and drawn for each cell of all images apart, so that one may come in
            several) or "file:PATH" (a synthetic set made from `dataset`, with as many images, or
            the checkpoint of a run).
        seed: of the draws.
        count_option: the option that asked for so many images, which an error names.
        view: how the images are to be stored. Those of a set that has it too are taken as they are;
            without one, those of any set as networks see them.
    """
    labels = class_by_class(dataset, ipc)
    if init == "noise":
        noise = [
            torch.randn(ipc, *dataset.shape, generator=generator(seed, "start noise", c))
            for c in range(dataset.num_classes)
        ]
        return torch.cat(noise), labels
    if init.startswith("file:"):
        path = file_of(Path(init.removeprefix("file:")))
        return _from_file(path, dataset, labels, view), labels
    if init not in INITS:
        raise ValueError(f"init: expected {', '.join(INITS)} or file:PATH, got {init!r}")
    if init in ("cells", "smooth_cells"):
        in_cells = view is not None and view.name == "cells"
        settings: Mapping[str, Any] = view.settings if view and in_cells else {}
        factor, order = settings.get("factor", 1), settings.get("order", "rows")
        if init == "cells":
            there = _real(dataset, ipc * factor**2, seed, "start", count_option)
            return tiled(there, factor, order), labels
        of_cells = [
            _real(dataset, ipc, seed, f"start of cell {cell}", count_option)
            for cell in range(factor**2)
        ]
        there = torch.stack(of_cells, dim=1).flatten(0, 1)
        return tiled(there, factor, order, mode="bilinear"), labels
    first = _real(dataset, ipc, seed, "start", count_option)
    if init == "mix":
        second = _real(dataset, ipc, seed, "start mix", count_option)
        shares = [
            torch.rand(ipc, 1, 1, 1, generator=generator(seed, "start share", c))
            for c in range(dataset.num_classes)
        ]
        share = torch.cat(shares)
        return share * first + (1 - share) * second, labels
    return first, labels


def real_rows(
    dataset: Dataset, ipc: int, c: int, seed: int, purpose: str = "start", count_option: str = "ipc"
) -> Tensor:
    """Row numbers of `ipc` different real images of class `c`."""
    first, last = dataset.train.offsets[c : c + 2].tolist()
    there = last - first
    if there < ipc:
        name, also = dataset.class_names[c], " or start from noise"
        raise ValueError(
            f"{count_option}: class {name} of {dataset.name} has {there} real images, fewer "
            f"than {ipc}; take fewer{also if count_option == 'ipc' else ''}"
        )
    drawn = torch.randperm(there, generator=generator(seed, purpose, c))[:ipc]
    return drawn.add_(first)


def random_real_set(
    dataset: Dataset, counts: Sequence[int], seed: int, count_option: str
) -> SyntheticSet:
    """A set of so many random real images of each class, made when they are asked for."""
    rows = torch.cat(
        [
            real_rows(dataset, count, c, seed, count_option=count_option)
            for c, count in enumerate(counts)
        ]
    )
    return real_set(dataset, rows)


def real_set(dataset: Dataset, rows: Tensor | slice = slice(None)) -> SyntheticSet:
    """Real images of some rows, or all, as a set, made when they are asked for if they are many."""
    images = rows_of(dataset.train.source, rows)
    if dataset.whitening is not None:  # which rounds differently for other numbers of images
        images = all_of(images)
    return SyntheticSet.of(dataset, dataset.inputs(images), dataset.train.labels[rows])


def _real(dataset: Dataset, ipc: int, seed: int, purpose: str, count_option: str) -> Tensor:
    """`ipc` different real images of each class."""
    rows = [
        real_rows(dataset, ipc, c, seed, purpose, count_option) for c in range(dataset.num_classes)
    ]
    return dataset.to_input(dataset.train.source[torch.cat(rows)])


def tiled(images: Tensor, factor: int, order: str = "rows", mode: str = "nearest") -> Tensor:
    """Images that hold factor x factor others each, as the view `cells` of that order reads them.

    Args:
        images: `(N, channels, height, width)`; those of one image follow each other.
        factor: cells in a row and in a column.
        order: of the cells of an image, "rows" or "columns".
        mode: how images are made smaller, as `torch.nn.functional.interpolate` calls it.
    """
    _, channels, height, width = images.shape
    size = -(-height // factor), -(-width // factor)
    small = F.interpolate(images, size=size, mode=mode)
    grid = small.view(-1, factor, factor, channels, *size)
    if order == "columns":
        grid = grid.transpose(1, 2)
    grid = grid.permute(0, 3, 1, 4, 2, 5)
    whole = grid.reshape(len(grid), channels, factor * size[0], factor * size[1])
    return whole[:, :, :height, :width].contiguous()


def _from_file(path: Path, dataset: Dataset, labels: Tensor, view: View | None) -> Tensor:
    if kind_of(path) == CHECKPOINT:
        tensors, record = read_tensors(path, CHECKPOINT)
        dataset.check_made_for(record, f"init: {path}")
        dataset.check_unseen(record, f"init: {path}")
        _check_view(record, view, path)
        found = tensors["images"]
        if len(found) != len(labels):
            raise ValueError(f"init: {path}: expected {len(labels)} images, got {len(found)}")
        return found
    loaded = SyntheticSet.load(path)
    if view is None:
        loaded = loaded.seen()
    dataset.check_made_for(loaded.record, f"init: {path}")
    dataset.check_unseen(loaded.record, f"init: {path}")
    _check_view(loaded.record, view, path)
    if not torch.equal(loaded.labels, labels):
        raise ValueError(
            f"init: {path}: expected {len(labels)} images, class by class and equally many of "
            f"each, got {len(loaded.labels)} with other labels"
        )
    return loaded.images


def _check_view(record: Mapping[str, Any], view: View | None, path: Path) -> None:
    """Raise where images are stored in another way than `view` reads them."""
    found, expected = record.get("view"), None if view is None else view.as_record()
    if found != expected:
        raise ValueError(
            f"init: {path}: expected images stored with the view {expected} of the method, got "
            f"{found}"
        )
