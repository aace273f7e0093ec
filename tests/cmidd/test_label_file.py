"""Files of soft labels that serve, and that are refused."""

from __future__ import annotations

import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from cmidd.datasets.whitening import Whitening
from cmidd.label_file import KIND, SoftLabels
from cmidd.options.recipe import recipe_of
from cmidd.relabelling import Relabelling, relabel
from cmidd.storage.growing_file import partial_path
from cmidd.storage.tensor_file import FileError, bytes_of, metadata, record_of
from cmidd.synthetic import SyntheticSet
from tests.support.labels import (
    DATASET,
    OPTIONS,
    SET,
    Recorded,
    labelled,
)
from tests.support.tiny import CPU, quiet, tiny_dataset


def rewritten(path: Path, target: Path, record: dict[str, Any], **tensors: Tensor) -> None:
    """The file with another record or other tensors, and the checksum of the record as it is."""
    about = {**record_of(path), **record}
    del about["kind"], about["format"]
    content = {**load_file(path), **tensors}
    target.write_bytes(save(content, metadata=metadata(KIND, about)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"epochs": 4}, "expected tensors"),
        ({"images": 8}, "expected tensors"),
        ({"epochs": 0}, "expected a record with images, num_classes"),
        ({"batch_size": "4"}, "expected a record with images, num_classes"),
        ({"batch_size": 0}, "expected a record with images, num_classes"),
        ({"cutmix": 2.0}, "cutmix from 0 to 1"),
        ({"zoom": 0.0}, "zoom above 0"),
        ({"seed": None}, "and the numbers set_crc32, seed and streams"),
        ({"seed": -1}, "the seed from 0 on"),
        ({"seed": 2**63}, "the seed from 0 on"),
        ({"held_out": "half"}, "a share held_out if any"),
        ({"held_out": 2.0}, "a share held_out if any"),
        ({"teachers": None}, "teachers by their checksums"),
        ({"teachers": ["one"]}, "teachers by their checksums"),
        ({"augmentation": "all:melt"}, "no operation 'melt'"),
        ({"streams": 1}, "drawn as today .streams 2., got streams 1; relabel the set"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, labels_file: Path, record: dict[str, Any], message: str
) -> None:
    other = tmp_path / "other"
    rewritten(labels_file, other, record)
    with pytest.raises(FileError, match=rf"{other}: .*{message}"):
        SoftLabels.load(other)


def test_tensors_that_are_something_else_are_refused(tmp_path: Path, labels_file: Path) -> None:
    there, other = load_file(labels_file), tmp_path / "other"
    for name, tensor in {
        "logits": there["logits"].float(),
        "crc32 of logits": torch.zeros(2, dtype=torch.int64),
        "trained": torch.ones(3),
    }.items():
        rewritten(labels_file, other, {}, **{name: tensor})
        with pytest.raises(FileError, match=rf"{other}: expected tensors"):
            SoftLabels.load(other)
    rewritten(labels_file, other, {}, trained=torch.tensor([1, 0, 1], dtype=torch.uint8))
    with pytest.raises(FileError, match=rf"{other}: only 2 of 3 epochs are there"):
        SoftLabels.load(other)
    rewritten(labels_file, other, {}, logits=there["logits"] + 1)
    labels = SoftLabels.load(other)
    with pytest.raises(FileError, match=r"a piece of logits of epoch 2: .*the file is damaged"):
        labels.of_epoch(1)
    broken = torch.full_like(there["logits"], torch.inf)
    crc32 = torch.tensor([zlib.crc32(bytes_of(each)) for each in broken])
    rewritten(labels_file, other, {}, **{"logits": broken, "crc32 of logits": crc32})
    with pytest.raises(FileError, match=rf"{other}: expected finite labels, got others in epoch 1"):
        SoftLabels.load(other).of_epoch(0)


def test_a_file_that_is_cut_short_or_incomplete_is_refused(
    tmp_path: Path, labels_file: Path
) -> None:
    content, other = labels_file.read_bytes(), tmp_path / "other"
    for length in [0, 7, 8, 100, len(content) // 2, len(content) - 1]:
        other.write_bytes(content[:length])
        with pytest.raises(FileError, match=str(other)):
            SoftLabels.load(other)
    other.replace(partial_path(other))
    with pytest.raises(FileNotFoundError, match="the set of soft labels is not complete; give"):
        SoftLabels.load(other)


def test_a_file_that_is_replaced_while_it_serves_is_noticed(
    tmp_path: Path, labels_file: Path
) -> None:
    other = tmp_path / "other"
    shutil.copy(labels_file, other)
    labels = SoftLabels.load(other)
    labels.of_epoch(0)
    labelled(other.with_name("new"), seed=8).path.replace(other)
    with pytest.raises(FileError, match="another file has taken its place; begin again"):
        labels.of_epoch(1)


def test_labels_serve_their_own_set_and_recipe_alone(labels_file: Path) -> None:
    labels = SoftLabels.load(labels_file)
    recipe = recipe_of({}, taught=labels.draws)
    labels.check(SET, DATASET, replace(recipe, epochs=2))
    wrong: dict[str, tuple[Any, str]] = {
        "epochs": (4, "epochs: expected at most 3, which .* has labels for, got 4; leave it out"),
        "batch_size": (5, "batch_size: expected 4, which"),
        "augmentation": ("color", "augmentation: expected all:zoom_flip, which .*, got color"),
        "cutmix": (0.5, "cutmix: expected 1.0"),
        "zoom": (0.5, "zoom: expected 0.08"),
        "soft_loss": ("none", "recipe: expected soft_loss kl or mse"),
    }
    for name, (value, message) in wrong.items():
        changes: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=message):
            labels.check(SET, DATASET, replace(recipe, **changes))
    moved = replace(SET, source=SET.images + 1e-3)
    with pytest.raises(ValueError, match=f"labels: {labels_file} has those of another set"):
        labels.check(moved, DATASET, recipe)
    with pytest.raises(ValueError, match=f"labels: {labels_file}: expected dataset other"):
        labels.check(SET, tiny_dataset("other"), recipe)
    with pytest.raises(ValueError, match=f"labels: {labels_file}: expected one made with held_out"):
        labels.check(SET, DATASET.holding_out(0.5), recipe)


def test_labels_are_of_the_images_that_a_view_shows(tmp_path: Path) -> None:
    view = {"name": "cells", "settings": {"factor": 2}}
    of_cells = replace(SET, record={**SET.record, "view": view})
    teacher = Recorded()
    made = Relabelling(of_cells, DATASET, [teacher], replace(OPTIONS, augmentation="none"), CPU)
    labels = relabel(tmp_path / "labels", made, say=quiet)
    assert sum(len(images) for images in teacher.saw) == 3 * 4 * len(SET.labels)
    recipe = recipe_of({}, taught=labels.draws)
    labels.check(of_cells, DATASET, recipe)
    by_columns = {"name": "cells", "settings": {"factor": 2, "order": "columns"}}
    other = replace(of_cells, record={**SET.record, "view": by_columns})
    with pytest.raises(ValueError, match="has those of another set, or of this one before it was"):
        labels.check(other, DATASET, recipe)


def test_labels_are_of_the_images_as_they_are_whitened(tmp_path: Path) -> None:
    whitened = replace(DATASET, whitening=Whitening(torch.zeros(64), torch.eye(64), 0.1))
    a_set = SyntheticSet.of(whitened, SET.images, SET.labels)
    made = Relabelling(a_set, DATASET, [Recorded()], OPTIONS, CPU)
    labels = relabel(tmp_path / "labels", made, say=quiet)
    recipe = recipe_of({}, taught=labels.draws)
    labels.check(a_set, whitened, recipe)
    other = Whitening(torch.zeros(64), 2 * torch.eye(64), 0.1)
    with pytest.raises(ValueError, match="has those of another set, or of this one before it was"):
        labels.check(replace(a_set, whitening=other), replace(DATASET, whitening=other), recipe)
    with pytest.raises(ValueError, match="expected images without whitening"):
        labels.check(SET, DATASET, recipe)


def test_a_zoom_that_no_operation_reads_is_not_compared(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labels", augmentation="flip")
    labels.check(SET, DATASET, replace(recipe_of({}, taught=labels.draws), zoom=0.5))
