"""Teachers are the networks of banks and of state dicts, frozen, for the images of a dataset."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmidd.datasets import Dataset, ImageSet
from cmidd.datasets.known import KNOWN
from cmidd.pretrained.bank import Bank
from cmidd.pretrained.teachers import load_teachers
from tests.support.tiny import CPU, quiet, tiny_bank, tiny_dataset
from tests.support.torchvision_states import logits_of, resnet_state, saved

STATE = resnet_state(18, 3, stem=3)


def color_dataset() -> Dataset:
    """As tiny as the other, in color, and normalised as ImageNet is."""
    usual = KNOWN["imagenet"]
    return replace(tiny_dataset("color", channels=3), mean=usual.mean, std=usual.std)


DATASET = color_dataset()


@pytest.fixture(autouse=True)
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a state dict."""
    return saved(STATE, tmp_path_factory.mktemp("teacher") / "resnet18.pth")


def told_of(path: Path, dataset: Dataset = DATASET) -> list[str]:
    """What is said when the file is loaded."""
    said: list[str] = []
    load_teachers([path], dataset, CPU, say=said.append)
    return said


def test_banks_and_state_dicts_stand_in_the_order_of_the_files(
    tmp_path: Path, weights: Path
) -> None:
    tiny_bank(tmp_path / "one", DATASET, networks=2)
    tiny_bank(tmp_path / "two", DATASET, networks=1, network="convnet:width=4,depth=1,norm=batch")
    one, two = (Bank.load(tmp_path / name, CPU) for name in ("one", "two"))
    paths = [tmp_path / "one", weights, tmp_path / "two"]
    teachers = load_teachers(paths, DATASET, CPU, say=quiet)
    images = DATASET.to_input(DATASET.test.images)
    expected = [one[0](images), one[1](images), logits_of(STATE, images), two[0](images)]
    assert len(teachers) == 4
    for teacher, logits in zip(teachers, expected, strict=True):
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        torch.testing.assert_close(teacher(images), logits, rtol=1e-4, atol=1e-4)


def test_what_images_are_normalised_by_is_said_where_it_is_not_as_torchvision_has_it(
    weights: Path,
) -> None:
    assert told_of(weights) == []
    other = replace(DATASET, std=(0.25, 0.25, 0.25))
    (line,) = told_of(weights, other)
    assert line == (
        f"{weights} gets images less the mean 0.485 0.456 0.406, over 0.25 0.25 0.25, as color has "
        "them; torchvision's weights expect 0.485 0.456 0.406, over 0.229 0.224 0.225"
    )


def error_of(path: Path, dataset: Dataset) -> str:
    with pytest.raises((OSError, ValueError), match=r"^.+$") as raised:  # one line
        load_teachers([path], dataset, CPU, option="teacher")
    return str(raised.value)


def test_another_number_of_classes_is_an_error(weights: Path) -> None:
    part = ImageSet.from_arrays(DATASET.train.images[:4], torch.arange(4), 4)
    other = replace(DATASET, train=part, test=part, class_names=("a", "b", "c", "d"))
    assert error_of(weights, other) == (
        f"{weights}: expected 4 classes as the dataset has, got imagenet_resnet18:stem=small of 3"
    )


def test_images_that_were_whitened_or_held_out_are_not_for_it(weights: Path) -> None:
    assert error_of(weights, DATASET.whitened()) == (
        "teacher: expected images without whitening (zca) for a network that was trained "
        f"elsewhere, {weights}"
    )
    text = error_of(weights, DATASET.holding_out(0.5))
    assert text.startswith(f"teacher: {weights}: expected one made with held_out 0.5 or more")


def test_files_of_ours_that_are_no_bank_are_named(tmp_path: Path) -> None:
    tiny_bank(tmp_path / "bank", tiny_dataset())
    assert "teacher: " in error_of(tmp_path / "bank", DATASET)  # of other images
    assert "none" in error_of(tmp_path / "missing", DATASET).splitlines()[0]
    (tmp_path / "bank").rename(tmp_path / "begun.partial")
    assert "is not complete; give the command that began it --resume" in error_of(
        tmp_path / "begun", DATASET
    )


def test_metadata_that_is_no_record_makes_no_bank_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(STATE, path, {"cmidd": "[]"})
    assert len(load_teachers([path], DATASET, CPU, say=quiet)) == 1


def test_weights_draw_nothing(weights: Path) -> None:
    before = torch.get_rng_state()
    load_teachers([weights], DATASET, CPU, say=quiet)
    assert torch.equal(torch.get_rng_state(), before)
