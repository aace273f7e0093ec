from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmidd.datasets import DatasetNotFound, load_dataset
from cmidd.datasets.known import KNOWN
from tests.support.dataset_files import Sets, Split, random_sets

datasets = pytest.importorskip("datasets")

SETS = random_sets(3, 3, 5, 6)


def rows(split: Split) -> list[Any]:
    from PIL import Image

    arrays = (i[0] if len(i) == 1 else i.transpose(1, 2, 0) for i in split.images)
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]


def hub_split(split: Split, num_classes: int) -> Any:
    """Like CIFAR-100 on the hub: pictures, fine labels, and coarse ones in front."""
    names = [f"c{c}" for c in range(num_classes)]
    return datasets.Dataset.from_dict(
        {"img": rows(split), "coarse": [0] * len(split.labels), "fine": split.labels.tolist()},
        features=datasets.Features(
            img=datasets.Image(),
            coarse=datasets.ClassLabel(names=["all"]),
            fine=datasets.ClassLabel(names=names),
        ),
    )


def hub_sets(sets: Sets, num_classes: int = 3, test: str = "test") -> Any:
    return datasets.DatasetDict(
        {"train": hub_split(sets.train, num_classes), test: hub_split(sets.test, num_classes)}
    )


def assert_read(name: str, sets: Sets) -> None:
    data = load_dataset(name)
    for image_set, split in ((data.train, sets.train.sorted), (data.test, sets.test.sorted)):
        assert torch.equal(image_set.images, torch.from_numpy(split.images))
        assert image_set.labels.tolist() == split.labels.tolist()
    assert (data.name, data.class_names) == (name, ("c0", "c1", "c2"))


@pytest.mark.parametrize("test", ["test", "validation", "valid"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_save_to_disk_wrote_is_read(channels: int, test: str, tmp_path: Path) -> None:
    sets = random_sets(3, channels, 5, 6)
    hub_sets(sets, test=test).save_to_disk(str(tmp_path / "set"))
    assert_read(f"hub:{tmp_path / 'set'}", sets)


def test_pictures_are_made_to_size(tmp_path: Path) -> None:
    hub_sets(SETS).save_to_disk(str(tmp_path / "set"))
    assert load_dataset(f"hub:{tmp_path / 'set'}", size=4).shape == (3, 4, 4)


def test_a_test_split_whose_labels_are_secret_is_passed_over(tmp_path: Path) -> None:
    splits = hub_sets(SETS, test="validation")
    secret = Split(SETS.train.images, np.full_like(SETS.train.labels, -1))
    splits["test"] = hub_split(secret, num_classes=3)
    splits.save_to_disk(str(tmp_path / "set"))
    assert_read(f"hub:{tmp_path / 'set'}", SETS)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            lambda s: datasets.DatasetDict(test=s["test"]),
            "needs images in the splits train and test or validation or valid, has only test;",
        ),
        (
            lambda s: datasets.DatasetDict(one=s["test"], two=s["test"]),
            "needs images in the splits train and test or validation or valid, has one, two",
        ),
        (lambda s: s.remove_columns("img"), "one column of type Image"),
        (lambda s: s.remove_columns(["fine", "coarse"]), "one of type ClassLabel, which class_enc"),
    ],
)
def test_a_set_that_lacks_a_part_is_an_error_that_says_which(
    splits: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    splits(hub_sets(SETS)).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=f"hub:{tmp_path / 'set'}: .*{message}"):
        load_dataset(f"hub:{tmp_path / 'set'}")


@pytest.mark.parametrize("alone", [True, False])
def test_a_set_of_one_split_says_how_to_split_it(alone: bool, elsewhere: Path) -> None:
    split = hub_sets(SETS)["train"]
    (split if alone else datasets.DatasetDict(train=split)).save_to_disk("set")
    with pytest.raises(ValueError, match=r"has only (train|unnamed); split it with .*") as caught:
        load_dataset("hub:set")
    code, _, name = str(caught.value).partition(" with ")[2].partition(" and take ")
    exec(f"import datasets; {code}")
    data = load_dataset(name)
    assert (len(data.train), len(data.test)) == (4, 2)


def test_a_set_of_one_split_on_the_hub_is_split_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = datasets.DatasetDict(train=hub_sets(SETS)["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: one)
    with pytest.raises(
        ValueError, match=r'datasets\.load_dataset\("me/mine", "small", split="train"\)\.train_test'
    ):
        load_dataset("hub:me/mine:small")
    said = "asking the Hugging Face hub for me/mine:small (without a network it takes half a minute"
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ({"bytes": b"no image", "path": None}, "cannot identify image file"),
        (None, "has no image"),
    ],
)
def test_a_picture_that_cannot_be_read_is_an_error_that_names_its_row(
    picture: Any, message: str, tmp_path: Path
) -> None:
    splits = hub_sets(SETS)
    features = splits["test"].features
    records = splits["test"].cast_column("img", datasets.Image(decode=False)).to_dict()
    records["img"][1] = picture
    splits["test"] = datasets.Dataset.from_dict(records, features=features)
    splits.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=f"set test, row 1: {message}"):
        load_dataset(f"hub:{tmp_path / 'set'}")


def test_a_folder_that_save_to_disk_did_not_write_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: .*neither"):
        load_dataset(f"hub:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("hub:me/mine", ("me/mine",)), ("hub:me/mine:small", ("me/mine", "small"))],
)
def test_other_names_are_those_of_the_hub(
    name: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*arguments: str) -> Any:
        asked.append(arguments)
        return hub_sets(SETS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert_read(name, SETS)
    assert asked == [arguments]


def test_the_hub_copy_of_a_standard_set_is_that_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grey = hub_sets(random_sets(3, 1, 5, 6))
    monkeypatch.setattr(datasets, "load_dataset", {KNOWN["mnist"].hub: grey}.get)
    data, mnist = load_dataset(f"hub:{KNOWN['mnist'].hub}"), KNOWN["mnist"]
    assert (data.name, data.mean, data.std) == ("mnist", mnist.mean, mnist.std)
    assert not data.mirror


def test_a_training_split_without_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = hub_sets(SETS)
    splits["train"] = splits["train"].select([])
    monkeypatch.setattr(datasets, "load_dataset", {"me/mine": splits}.get)
    with pytest.raises(ValueError, match="hub:me/mine: needs images in the splits train"):
        load_dataset("hub:me/mine")


@pytest.mark.parametrize("error", [FileNotFoundError, ConnectionError])
def test_what_the_hub_does_not_have_is_an_error_that_names_it(
    error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        raise error("no such set")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DatasetNotFound, match=r"hub:me/mine is neither a folder .*: no such set"):
        load_dataset("hub:me/mine")


def test_a_missing_package_is_an_error_that_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "cmikernels\[hub\]"'):
        load_dataset("hub:me/mine")
