"""Teachers are the networks of banks and of state dicts, frozen, for the images of a dataset."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmidd import ranks
from cmidd.datasets import Dataset, ImageSet
from cmidd.datasets.known import KNOWN
from cmidd.pretrained.bank import Bank
from cmidd.pretrained.teachers import load_teachers
from cmikernels.embedding import embed
from tests.support.tiny import CPU, quiet, tiny_bank, tiny_dataset
from tests.support.torchvision_states import (
    Large,
    State,
    features_of,
    logits_of,
    put_torchvision_in_place,
    resnet_state,
    saved,
)


def state_of(stem: int = 3) -> State:
    return resnet_state(18, 3, stem)


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
    return saved(state_of(), tmp_path_factory.mktemp("teacher") / "resnet18.pth")


@pytest.fixture(scope="module")
def torchvisions_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a state dict whose stem is that for ImageNet."""
    return saved(state_of(stem=7), tmp_path_factory.mktemp("teacher") / "imagenet.pth")


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
    expected = [one[0](images), one[1](images), logits_of(state_of(), images), two[0](images)]
    assert len(teachers) == 4
    for teacher, logits in zip(teachers, expected, strict=True):
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        torch.testing.assert_close(teacher(images), logits, rtol=1e-4, atol=1e-4)


def test_what_images_are_normalised_by_is_said_where_it_is_not_as_torchvision_has_it(
    torchvisions_weights: Path,
) -> None:
    assert told_of(torchvisions_weights) == []
    other = replace(DATASET, std=(0.25, 0.25, 0.25))
    (line,) = told_of(torchvisions_weights, other)
    assert line == (
        f"{torchvisions_weights} gets images less the mean 0.485 0.456 0.406, over 0.25 0.25 0.25, "
        "as color has them; torchvision's weights expect 0.485 0.456 0.406, over 0.229 0.224 0.225"
    )


def test_of_a_small_stem_it_is_always_said_that_nothing_is_known(weights: Path) -> None:
    assert told_of(weights) == [
        f"{weights} gets images less the mean 0.485 0.456 0.406, over 0.229 0.224 0.225, as color "
        "has them; nothing is known of what its images were normalised by"
    ]


def test_the_first_rank_alone_says_it(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "is_first", lambda: False)
    assert told_of(weights) == []


def test_images_are_normalised_by_a_teachers_own_numbers_if_they_are_told(weights: Path) -> None:
    mean, std, said = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), list[str]()
    (teacher,) = load_teachers([weights], DATASET, CPU, mean=mean, std=std, say=said.append)
    assert not said
    assert not teacher.training
    pixels = DATASET.test.images.double() / 255
    own = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    images = DATASET.to_input(DATASET.test.images)
    torch.testing.assert_close(teacher(images), logits_of(state_of(), own.float()),
                               rtol=1e-4, atol=1e-4)  # fmt: skip
    torch.testing.assert_close(embed(teacher, images), features_of(state_of(), own.float()),
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_banks_are_normalised_as_they_were(tmp_path: Path) -> None:
    tiny_bank(tmp_path / "bank", DATASET)
    told, plain = (
        load_teachers([tmp_path / "bank"], DATASET, CPU, mean=mean, std=std, say=quiet)[0]
        for mean, std in (((0.1,) * 3, (0.9,) * 3), (None, None))
    )
    images = DATASET.to_input(DATASET.test.images)
    assert torch.equal(told(images), plain(images))


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((0.5,) * 3, None, "std: expected numbers, as mean is given too, got none"),
        (None, (0.5,) * 3, "mean: expected numbers, as std is given too, got none"),
        ((0.5,), (0.5,) * 3, "mean: expected one number for each of 3 channels, got 1"),
        ((0.5,) * 3, (0.5, 0.0, 0.5), "std: expected numbers that are more than 0, got 0.0"),
        ((0.5, float("nan"), 0), (1,) * 3, "mean: expected numbers that are finite, got nan"),
    ],
)
def test_numbers_that_normalise_nothing_are_named(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        load_teachers([], DATASET, CPU, mean=mean, std=std)


def error_of(path: Path, dataset: Dataset) -> str:
    with pytest.raises((OSError, ValueError), match=r"^.+$") as raised:  # one line
        load_teachers([path], dataset, CPU, option="teacher")
    return str(raised.value)


def test_another_number_of_classes_is_an_error(weights: Path) -> None:
    part = ImageSet.from_arrays(DATASET.train.images[:4], torch.arange(4), 4)
    other = replace(DATASET, train=part, test=part, class_names=("a", "b", "c", "d"))
    assert error_of(weights, other) == (
        f"teacher: {weights}: expected 4 classes as the dataset has, got "
        "imagenet_resnet18:stem=small of 3"
    )


def test_images_that_are_too_small_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_torchvision_in_place(monkeypatch)
    path = saved(Large(None, 3).state_dict(), tmp_path / "file.pth")
    _, height, width = DATASET.shape
    text = error_of(path, DATASET)
    assert text.startswith(
        f"teacher: {path}: alexnet cannot take images of (3, {height}, {width}): "
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


@pytest.mark.parametrize("metadata", ["[]", "[" * 10**5])
def test_metadata_that_is_no_record_makes_no_bank_of_a_file(metadata: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(state_of(), path, {"cmidd": metadata})
    assert len(load_teachers([path], DATASET, CPU, say=quiet)) == 1


def test_weights_draw_nothing(weights: Path) -> None:
    before = torch.get_rng_state()
    load_teachers([weights], DATASET, CPU, say=quiet)
    assert torch.equal(torch.get_rng_state(), before)
