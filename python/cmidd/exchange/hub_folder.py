"""A distilled set as a folder for the Hugging Face hub, which `datasets.load_dataset` loads.

README.md              the card, with its header of YAML
data/train.parquet     image (PNG), label (ClassLabel), soft_label where labels were learned
result.safetensors     the set itself: exact images and all that is known of it
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.exchange.dataset_card import TABLE, Rounding, dataset_card
from cmidd.exchange.exports import check_folders, picture
from cmidd.storage.output import write_text
from cmidd.synthetic import SyntheticSet


def check_library() -> None:
    """Raise where the package `datasets` is missing, which writes the table."""
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'hub: needs the package datasets: pip install "cmikernels[hub]"'
        ) from error


def export_hub(
    synthetic_set: SyntheticSet, folder: Path, evaluation: Mapping[str, Any] | None = None
) -> None:
    """Write the folder, which is new or empty.

    Args:
        synthetic_set: as it was distilled.
        folder: to upload.
        evaluation: of the set, for the card: `evaluations` and `held_out` as in its file.
    """
    check_library()
    check_folders({"hub": folder})
    seen = synthetic_set.seen()
    pixels = seen.pixels()
    (folder / TABLE).parent.mkdir()
    _table_of(seen, pixels).to_parquet(folder / TABLE)
    synthetic_set.save(folder / "result.safetensors")
    name, rounding = folder.resolve().name, _rounding(seen, pixels)
    write_text(folder / "README.md", dataset_card(synthetic_set, name, rounding, evaluation))


def _table_of(seen: SyntheticSet, pixels: Tensor) -> Any:
    """The set in the form of the library, a row for each image."""
    from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value

    names = list(map(str, seen.record["class_names"]))
    if len(set(names)) < len(names):  # which the library refuses
        names = [f"{c} {name}" for c, name in enumerate(names)]
    columns: dict[str, Any] = {
        "image": [picture(each) for each in pixels],
        "label": seen.labels.tolist(),
    }
    features = {"image": Image(), "label": ClassLabel(names=names)}
    if seen.soft_labels is not None:
        columns["soft_label"] = seen.soft_labels.numpy()
        features["soft_label"] = Sequence(Value("float32"), length=len(names))
    return Dataset.from_dict(columns, features=Features(features))


def _rounding(seen: SyntheticSet, pixels: Tensor) -> Rounding:
    """How far what the pictures give is from the exact images, as networks take them."""
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(seen.record[name]).view(shape) for name in ("mean", "std"))
    given = ((pixels * 255).round() / 255 - mean) / std
    if seen.whitening is not None:
        given = seen.whitening.apply(given)
    apart = (given - seen.images).abs()
    return Rounding(float(apart.mean()), float(apart.max()))
