"""Sets of the Hugging Face hub, or written by `save_to_disk`, through the package `datasets`.

    hub:NAME, hub:NAME:CONFIG or hub:FOLDER

The image column is the one of type Image; the label column the one of type ClassLabel, that of
the most classes where there are several (CIFAR-100 has coarse and fine ones).
"""

from __future__ import annotations

import io
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from cmidd.datasets.encoded import Decoding
from cmidd.datasets.files import DatasetNotFound, reading
from cmidd.datasets.given import Array
from cmidd.datasets.images import Dataset, ImageSet
from cmidd.datasets.known import KNOWN
from cmidd.datasets.pictures import Picture, common_shape
from cmidd.datasets.statistics import channel_statistics

_TEST_SPLITS = ("test", "validation", "valid")


class _Column:
    """The encoded images of a split; reading it is for one thread at a time, decoding is not."""

    def __init__(self, split: Any, image_column: str, name: str) -> None:
        from datasets import Image

        self._rows = split.select_columns(image_column).cast_column(
            image_column, Image(decode=False)
        )
        self._image_column, self._name, self._lock = image_column, name, Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int, /) -> Picture:
        with self._lock:
            image = self._rows[row][self._image_column]
        name = f"{self._name}, row {row}"
        if not image:
            raise ValueError(f"{name}: has no image")
        if image["bytes"] is None:
            return Picture(name, Path(image["path"]))
        return Picture(name, io.BytesIO(image["bytes"]))


def load(name: str, root: Path, decoding: Decoding) -> Dataset:
    """Read the set that `hub:` names; downloads are kept where `datasets` keeps them."""
    source = name.partition(":")[2]
    splits = _open(source)
    with reading(name):
        _check_splits(source, splits)
        image_column, label_column = _columns(splits)
        used = ("train", _test_split(splits, label_column))
    class_names = tuple(splits["train"].features[label_column].names)
    columns = {split: _Column(splits[split], image_column, f"{name} {split}") for split in used}
    shape = common_shape(list(columns.values()), decoding.size)

    def image_set(split: str) -> ImageSet:
        images = decoding(columns[split], shape, split)
        labels = _labels(splits[split], label_column)
        with reading(f"{name} {split}"):
            return ImageSet.from_arrays(images, labels, len(class_names))

    train, test = map(image_set, used)
    for known_name, known in KNOWN.items():
        if known.hub == source:
            return Dataset.known(known_name, train, test, class_names)
    mean, std = channel_statistics(train.source)
    return Dataset(name, train, test, class_names, mean, std, mirror=True)


def _open(source: str) -> Any:
    """The splits of `source`, by name."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f'hub:{source} needs the package datasets: pip install "cmikernels[hub]"'
        ) from error
    folder = Path(source).expanduser()
    if folder.is_dir():
        with reading(folder):
            return datasets.load_from_disk(str(folder))
    print(
        f"asking the Hugging Face hub for {source} (without a network it takes half a minute to "
        "give up)",
        flush=True,
    )
    try:
        return datasets.load_dataset(*source.split(":", 1))
    except (FileNotFoundError, ConnectionError) as error:
        raise DatasetNotFound(
            f"hub:{source} is neither a folder nor within reach on the Hugging Face hub: {error}"
        ) from error


def _check_splits(source: str, splits: Any) -> None:
    """Raise unless there are images to train on and to test on, and say how to split a set."""
    is_alone = not isinstance(splits, dict)  # a split that was saved by itself
    names = [splits.split or "unnamed"] if is_alone else [name for name in splits if splits[name]]
    if not is_alone and "train" in names and any(name in names for name in _TEST_SPLITS):
        return
    needs = f"needs images in the splits train and {' or '.join(_TEST_SPLITS)}"
    if len(names) != 1:
        raise ValueError(f"{needs}, has {', '.join(names) or 'none'}")
    if Path(source).expanduser().is_dir():
        opened = f'load_from_disk("{source}")' + ("" if is_alone else f'["{names[0]}"]')
    else:
        words = ", ".join(f'"{word}"' for word in source.split(":", 1))
        opened = f'load_dataset({words}, split="{names[0]}")'
    raise ValueError(
        f"{needs}, has only {names[0]}; split it with datasets.{opened}"
        '.train_test_split(0.2, seed=0).save_to_disk("FOLDER") and take hub:FOLDER'
    )


def _columns(splits: Any) -> tuple[str, str]:
    """The names of the image column and of the label column."""
    from datasets import ClassLabel, Image

    features = splits["train"].features
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    labels = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(images) != 1 or not labels:
        raise ValueError(
            "expected one column of type Image and one of type ClassLabel, which "
            f"class_encode_column makes, got {dict(features)}"
        )
    return images[0], max(labels, key=lambda column: int(features[column].num_classes))


def _test_split(splits: Any, label_column: str) -> str:
    """The first test split with labels; -1 stands for labels that are kept secret."""
    for split in _TEST_SPLITS:
        if split in splits and (_labels(splits[split], label_column) >= 0).any():
            return split
    raise ValueError(
        f"needs one of the splits {', '.join(_TEST_SPLITS)} with labels, has {', '.join(splits)}"
    )


def _labels(split: Any, label_column: str) -> Array:
    return np.asarray(split.with_format("numpy")[label_column][:])  # (N,)
