"""The distilled set: how it starts, what its file holds, and what it is exported to.

Format, one safetensors file: `images` (N, channels, height, width) float32 as networks take them,
(pixel - mean) / std with pixels in [0, 1]; `labels` (N,) int64; and a JSON record with all that
using them takes: dataset, class names, mean, std, images per class, how they were made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.datasets.images import check_labels
from cmidd.files import FileError, read_tensors, write_tensors
from cmidd.seeds import generator

KIND = "synthetic set"
RECORD = ("class_names", "dataset", "mean", "num_classes", "shape", "std")
"""What the record has at least."""


@dataclass(frozen=True)
class SyntheticSet:
    """Images, labels, and the record that says how to use them."""

    images: Tensor  # (N, channels, height, width) float32, normalised
    labels: Tensor  # (N,) int64
    record: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, KIND, {"images": self.images, "labels": self.labels}, self.record)

    @classmethod
    def load(cls, path: Path) -> SyntheticSet:
        """Read and check the file."""
        tensors, record = read_tensors(path, KIND)
        missing = [name for name in RECORD if name not in record]
        if missing:
            raise FileError(f"{path}: expected a record with {', '.join(RECORD)}, lacks {missing}")
        empty = torch.empty(0)
        images, labels = tensors.get("images", empty), tensors.get("labels", empty)
        if (
            (images.dtype, labels.dtype) != (torch.float32, torch.int64)
            or list(images.shape[1:]) != record["shape"]
            or images.shape[:1] != labels.shape
        ):
            found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
            raise FileError(
                f"{path}: expected N float32 images of {record['shape']} and N int64 labels, got "
                f"{found}"
            )
        if not images.isfinite().all():
            raise FileError(f"{path}: expected finite images, got NaN or Inf among them")
        made = cls(images, labels, record)
        try:
            check_labels(labels, record["num_classes"])
            made.pixels()
            of_each = {"mean": images.shape[1], "std": images.shape[1]}
            of_each["class_names"] = record["num_classes"]
            wrong = [name for name, count in of_each.items() if len(record[name]) != count]
        except (RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path}: {error}") from None
        if wrong:
            raise FileError(
                f"{path}: expected {of_each[wrong[0]]} {wrong[0]}, got {record[wrong[0]]}"
            )
        if not len(images):
            raise FileError(f"{path}: expected images, got none")
        return made

    def pixels(self) -> Tensor:
        """The images as `(N, channels, height, width)` in [0, 1]."""
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(self.record[name]).view(shape) for name in ("mean", "std"))
        return (self.images * std + mean).clamp(0, 1)

    def export_png(self, folder: Path) -> None:
        """A folder for each class with its images, which most tools can read."""
        _check_new(folder)
        from PIL import Image

        names = self.record["class_names"]
        count: dict[int, int] = {}
        for pixels, label in zip(self.pixels(), self.labels.tolist(), strict=True):
            number = count[label] = count.get(label, -1) + 1
            # The number keeps classes in order, and apart and in the folder whatever their names.
            name = re.sub(r"[^\w.-]", "_", names[label])[:50]
            place = folder / f"{label:03d}_{name}"
            place.mkdir(parents=True, exist_ok=True)
            array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).save(
                place / f"{number:04d}.png"
            )

    def export_pt(self, folder: Path) -> None:
        """`images_best.pt` and `labels_best.pt`, the pair that the field's scripts load."""
        _check_new(folder)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.images, folder / "images_best.pt")
        torch.save(self.labels, folder / "labels_best.pt")


def _check_new(folder: Path) -> None:
    """Sets are not mixed with what is there."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: expected a new or an empty folder to export to")


def start(dataset: Dataset, ipc: int, init: str, seed: int) -> tuple[Tensor, Tensor]:
    """First images, normalised and class by class, and their labels.

    Args:
        dataset: where real images come from.
        ipc: images per class.
        init: "noise" (normal numbers), "real" (real images of the class, each once), "mix" (two
            real images of the class mixed, in a share drawn for each) or "file:PATH" (a synthetic
            set made from `dataset`, with as many images).
        seed: of the draws.
    """
    labels = torch.arange(dataset.num_classes).repeat_interleave(ipc)
    if init == "noise":
        noise = torch.randn(len(labels), *dataset.shape, generator=generator(seed, "start noise"))
        return noise, labels
    if init.startswith("file:"):
        return _from_file(Path(init.removeprefix("file:")), dataset, labels), labels
    if init not in ("real", "mix"):
        raise ValueError(f"init: expected noise, real, mix or file:PATH, got {init!r}")
    first = _real(dataset, ipc, seed, "start")
    if init == "mix":
        second = _real(dataset, ipc, seed, "start mix")
        share = torch.rand(len(labels), 1, 1, 1, generator=generator(seed, "start share"))
        return share * first + (1 - share) * second, labels
    return first, labels


def _real(dataset: Dataset, ipc: int, seed: int, purpose: str) -> Tensor:
    """`ipc` different real images of each class."""
    rows = []
    for c in range(dataset.num_classes):
        first, last = dataset.train.offsets[c : c + 2].tolist()
        if last - first < ipc:
            raise ValueError(
                f"ipc: class {dataset.class_names[c]} of {dataset.name} has {last - first} real "
                f"images, fewer than {ipc}; take fewer or start from noise"
            )
        rows.append(
            first + torch.randperm(last - first, generator=generator(seed, purpose, c))[:ipc]
        )
    return dataset.to_input(dataset.train.images[torch.cat(rows)])


def _from_file(path: Path, dataset: Dataset, labels: Tensor) -> Tensor:
    loaded = SyntheticSet.load(path)
    dataset.check_made_for(loaded.record, f"init: {path}")
    if not torch.equal(loaded.labels, labels):
        raise ValueError(
            f"init: {path}: expected {len(labels)} images, class by class and equally many of "
            f"each, got {len(loaded.labels)} with other labels"
        )
    return loaded.images
