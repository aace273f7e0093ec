"""A distilled set in the forms that other tools read."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from cmidd.synthetic import SyntheticSet


def export_png(synthetic_set: SyntheticSet, folder: Path) -> None:
    """A folder for each class with its images, which most tools can read."""
    _check_new(folder)
    from PIL import Image

    seen = synthetic_set.seen()
    names = seen.record["class_names"]
    count: dict[int, int] = {}
    for pixels, label in zip(seen.pixels(), seen.labels.tolist(), strict=True):
        number = count[label] = count.get(label, -1) + 1
        # The number keeps classes in order, and apart and in the folder whatever their names.
        name = re.sub(r"[^\w.-]", "_", names[label])[:50]
        place = folder / f"{label:03d}_{name}"
        place.mkdir(parents=True, exist_ok=True)
        array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).save(
            place / f"{number:04d}.png"
        )


def export_pt(synthetic_set: SyntheticSet, folder: Path) -> None:
    """`images_best.pt` and `labels_best.pt`, the pair that the field's scripts load.

    Images are as networks take them, whitened if the set is, and labels soft if there are such.
    """
    _check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seen = synthetic_set.seen()
    torch.save(seen.images, folder / "images_best.pt")
    torch.save(seen.targets, folder / "labels_best.pt")


def _check_new(folder: Path) -> None:
    """Refuse a folder that is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: expected a new or an empty folder to export to")
