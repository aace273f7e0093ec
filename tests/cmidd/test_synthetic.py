from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cmidd import synthetic
from cmidd.first_images import first_images
from cmidd.storage.tensor_file import FileError, write_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CLASSES, PER_CLASS, tiny_dataset

DATASET = tiny_dataset()


WHITENED = DATASET.whitened()


RECORD: dict[str, Any] = {**DATASET.describe(), "class_names": list(CLASSES)}


def a_set(ipc: int = 2, init: str = "noise", **changes: Any) -> SyntheticSet:
    return SyntheticSet(*first_images(DATASET, ipc, init, 0), {**RECORD, **changes})


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    before = a_set()
    before.save(tmp_path / "set")
    for path in (tmp_path / "set", str(tmp_path / "set")):
        after = SyntheticSet.load(path)
        assert torch.equal(after.images, before.images)
        assert torch.equal(after.labels, before.labels)
        assert RECORD.items() <= after.record.items()


def test_a_set_with_nan_is_refused(tmp_path: Path) -> None:
    images, labels = first_images(DATASET, 2, "noise", 0)
    images[1, 0, 2, 3] = float("nan")
    SyntheticSet(images, labels, RECORD).save(tmp_path / "set")
    with pytest.raises(FileError, match="expected finite images, got NaN or Inf"):
        SyntheticSet.load(tmp_path / "set")


def test_pixels_are_those_of_the_real_images_and_clamped() -> None:
    found = a_set(PER_CLASS, "real").pixels()
    everything = first_images(DATASET, PER_CLASS, "real", 0)[0]
    torch.testing.assert_close(found, DATASET.to_pixels(everything))
    far = SyntheticSet(torch.tensor([-1e9, 1e9]).view(2, 1, 1, 1), torch.arange(2), RECORD)
    assert far.pixels().flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    "wrong",
    [{"class_names": ["a"]}, {"mean": "x"}, {"std": [1.0] * 7}, {"network": ["convnet"]},
     {"evaluation": []}, {"evaluation": {"epochs": "3"}}, {"evaluation": {"rate": 1.0}},
     {"evaluation": {"lr": 0.0}}, {"evaluation": {"optimizer": "adam"}},
     {"evaluation": {"drop_at": [0.2, 2.0]}}, {"evaluation": {"drop_at": [0.2, "x"]}},
     {"evaluation": {"cutmix": 2.0}}, {"evaluation": {"cutmix": 1}},
     {"evaluation": {"batch_size": 0}}, {"evaluation": {"drop_by": 0.0}},
     {"evaluation": {"weight_decay": -1.0}}, {"evaluation": {"weight_decay": math.inf}},
     {"evaluation": {"schedule": "linear"}}, {"evaluation": {"warm_up": -1}}],
)  # fmt: skip
def test_a_record_that_does_not_fit_its_images_is_an_error(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    images, labels = first_images(DATASET, 1, "real", 0)
    record = {**DATASET.describe(), "class_names": list(DATASET.class_names), **wrong}
    SyntheticSet(images, labels, record).save(tmp_path / "set")
    with pytest.raises(FileError, match="set: "):
        SyntheticSet.load(tmp_path / "set")


def whitened_set(**changes: Any) -> SyntheticSet:
    """Two whitened images of each class, soft labels and a learned step size."""
    made = SyntheticSet.of(WHITENED, *first_images(WHITENED, 2, "real", 0), {"learned_lr": 0.02})
    soft = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    return replace(made, soft_labels=soft, **changes)


def parts_of(made: SyntheticSet) -> dict[str, Tensor]:
    """The tensors of its file."""
    assert made.soft_labels is not None
    assert made.whitening is not None
    return {
        "images": made.images,
        "labels": made.labels,
        "soft_labels": made.soft_labels,
        "whitening_mean": made.whitening.mean,
        "whitening_matrix": made.whitening.matrix,
    }


def test_all_that_a_set_learned_comes_back_bit_by_bit(tmp_path: Path) -> None:
    before = whitened_set()
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
    for name, tensor in parts_of(before).items():
        assert torch.equal(parts_of(after)[name], tensor), name
    assert after.whitening is not None
    assert after.whitening.eps == 1.6
    assert after.learned_lr == 0.02
    assert torch.equal(after.pixels(), before.pixels())
    after.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "set").read_bytes()


def test_a_set_without_them_has_a_file_as_before(tmp_path: Path) -> None:
    made = SyntheticSet.of(DATASET, *first_images(DATASET, 2, "real", 0))
    made.save(tmp_path / "set")
    with safe_open(tmp_path / "set", "pt") as file:
        assert sorted(file.keys()) == ["images", "labels"]
        assert "zca" not in file.metadata()["cmidd"]
    after = SyntheticSet.load(tmp_path / "set")
    assert (after.soft_labels, after.whitening, after.learned_lr) == (None, None, None)
    assert torch.equal(after.targets, made.labels)


def test_networks_learn_soft_labels_where_there_are_some() -> None:
    made = whitened_set()
    assert made.targets is made.soft_labels
    assert replace(made, soft_labels=None).targets is made.labels


def test_pixels_of_a_whitened_set_are_those_of_the_real_images(tmp_path: Path) -> None:
    whitened_set().save(tmp_path / "set")
    found = SyntheticSet.load(tmp_path / "set").pixels()
    plain = DATASET.to_pixels(first_images(DATASET, 2, "real", 0)[0])
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


def test_a_dataset_is_whitened_as_the_set_is() -> None:
    made, images = whitened_set(), DATASET.test.images
    assert torch.equal(made.whiten(DATASET).to_input(images), WHITENED.to_input(images))
    assert torch.equal(a_set().whiten(WHITENED).to_input(images), DATASET.to_input(images))


def test_a_whitening_that_the_record_does_not_have_is_an_error() -> None:
    for record, whitening in (
        (RECORD, WHITENED.whitening),
        ({**RECORD, "zca": 0.1}, None),
        ({**RECORD, "zca": 0.2}, WHITENED.whitening),
    ):
        with pytest.raises(ValueError, match="whitening: expected one with the record's zca"):
            SyntheticSet(*first_images(DATASET, 1, "real", 0), record, whitening=whitening)


NOT_SYMMETRIC = torch.eye(64) + torch.eye(64).roll(1, 0)


HALVES = torch.full((6, 3), 0.5)


DAMAGED: list[tuple[str, dict[str, Tensor | None], dict[str, Any]]] = [
    ("soft_labels of .6, 3., got .* of .6, 2.", {"soft_labels": torch.full((6, 2), 0.5)}, {}),
    ("float32 soft_labels .*float64", {"soft_labels": torch.full((6, 3), 1 / 3).double()}, {}),
    ("add up to 1, got .0.5, 0.5, 0.5. at row 0", {"soft_labels": HALVES}, {}),
    ("at row 0", {"soft_labels": torch.tensor([[1.5, -0.5, 0]]).expand(6, 3)}, {}),
    ("at row 0", {"soft_labels": torch.full((6, 3), float("nan"))}, {}),
    ("all or none, got zca 1.6", {"whitening_mean": None}, {}),
    ("all or none, got zca 1.6", {"whitening_matrix": None}, {}),
    ("all or none, got zca 1.6", {"whitening_mean": None, "whitening_matrix": None}, {}),
    ("all or none, got zca None", {}, {"zca": None}),
    ("above 0, got 'much'", {}, {"zca": "much"}),
    ("above 0, got -0.1", {}, {"zca": -0.1}),
    (r".1, 8, 8., got 9 means", {"whitening_mean": torch.zeros(9)}, {}),
    (r"of .D,. and .D, D.", {"whitening_matrix": torch.eye(9)}, {}),
    (r"of .D,. and .D, D.", {"whitening_matrix": torch.eye(64).double()}, {}),
    (r"of .D,. and .D, D.", {"whitening_mean": torch.zeros(64, 1)}, {}),
    ("", {"whitening_mean": torch.zeros(())}, {}),
    ("NaN or Inf", {"whitening_mean": torch.full((64,), float("inf"))}, {}),
    ("NaN or Inf", {"whitening_matrix": torch.full((64, 64), float("nan"))}, {}),
    ("symmetric", {"whitening_matrix": NOT_SYMMETRIC}, {}),
    ("positive definite", {"whitening_matrix": -torch.eye(64)}, {}),
    *[
        ("a learned_lr above 0", {}, {"learned_lr": rate})
        for rate in (0, -0.1, float("nan"), float("inf"), "0.1", True, [0.1])
    ],
]


@pytest.mark.parametrize(("message", "tensors", "record"), DAMAGED)
def test_a_damaged_part_is_an_error_that_names_the_file(
    tmp_path: Path, message: str, tensors: dict[str, Tensor | None], record: dict[str, Any]
) -> None:
    good, path = whitened_set(), tmp_path / "set"
    parts = {k: v for k, v in {**parts_of(good), **tensors}.items() if v is not None}
    write_tensors(path, synthetic.KIND, parts, {**good.record, **record})
    with pytest.raises(FileError, match=rf"{path}: .*{message}"):
        SyntheticSet.load(path)


def test_probabilities_rounded_in_half_precision_are_taken(tmp_path: Path) -> None:
    soft = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    made = replace(whitened_set(), soft_labels=soft.half().float())
    made.save(tmp_path / "set")
    SyntheticSet.load(tmp_path / "set")
