"""A distilled set in the forms that other tools read.

png: 000_<class>/0000.png, ..., 001_<class>/0000.png, ...
pt:  images_best.pt (N, channels, height, width) float32 as networks take them, whitened if the
     set is; labels_best.pt (N,) int64, or (N, C) float32 probabilities of a set with soft
     labels; lr.pt, one float32 number of no axes, of a set that learned its step size
ddranking: images.pt, labels.pt, lr.pt: the same, class by class, and the logarithms of
     probabilities, of which its losses take the softmax
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.storage.output import check_writable
from cmidd.synthetic import SyntheticSet


def export_png(synthetic_set: SyntheticSet, folder: Path) -> None:
    """A folder for each class with its images, which most tools can read."""
    check_folders({"png": folder})
    seen = synthetic_set.seen()
    names = seen.record["class_names"]
    count: dict[int, int] = {}
    pictures = (each for some in seen.pixels_in_pieces() for each in some)
    for pixels, label in zip(pictures, seen.labels.tolist(), strict=True):
        number = count[label] = count.get(label, -1) + 1
        # The number keeps classes in order, and apart and in the folder whatever their names.
        name = re.sub(r"[^\w.-]", "_", names[label])[:50]
        place = folder / f"{label:03d}_{name}"
        place.mkdir(parents=True, exist_ok=True)
        picture(pixels).save(place / f"{number:04d}.png")


def picture(pixels: Tensor) -> Any:
    """A picture in 8 bits of pixels (channels, height, width) in [0, 1]."""
    from PIL import Image

    array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array)


def export_pt(synthetic_set: SyntheticSet, folder: Path) -> None:
    """The pair that the field's scripts load, and `lr.pt` beside it if there is such."""
    check_folders({"pt": folder})
    seen = synthetic_set.seen()
    torch.save(seen.images, folder / "images_best.pt")
    torch.save(seen.targets, folder / "labels_best.pt")
    _save_rate(seen, folder)


def export_ddranking(synthetic_set: SyntheticSet, folder: Path) -> None:
    """What DD-Ranking scores, class by class."""
    check_folders({"ddranking": folder})
    seen = synthetic_set.seen()
    order = seen.labels.argsort(stable=True)
    labels = seen.labels[order]
    if seen.soft_labels is not None:
        # Of 0 the logarithm is -inf, which some of its losses multiply by 0.
        labels = seen.soft_labels[order].clamp_min(torch.finfo(torch.float32).tiny).log()
    torch.save(seen.images[order], folder / "images.pt")
    torch.save(labels, folder / "labels.pt")
    _save_rate(seen, folder)


def _save_rate(seen: SyntheticSet, folder: Path) -> None:
    if seen.learned_lr is not None:
        torch.save(torch.tensor(float(seen.learned_lr)), folder / "lr.pt")


def check_folders(folders: Mapping[str, Path]) -> None:
    """Make folders, by the names of arguments, if all are new or empty and take files."""
    for argument, folder in folders.items():
        if folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(
                f"{argument}: {folder} is not empty; expected a new or an empty folder to export to"
            )
        if folder.exists():
            check_writable(folder, argument)
    for argument, folder in folders.items():
        check_writable(folder, argument)
