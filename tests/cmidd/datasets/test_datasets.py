from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmidd.datasets import (
    _LOADERS,
    DATASETS,
    Dataset,
    DatasetNotFound,
    ImageSet,
    ImageShape,
    load_dataset,
)
from cmidd.datasets.known import KNOWN
from cmidd.datasets.statistics import channel_statistics
from tests.support.dataset_files import Sets, Split, random_sets, write_idx


def an_image_set(num_classes: int = 3, shape: tuple[int, ...] = (3, 4, 5)) -> ImageSet:
    split = random_sets(num_classes, *shape).train
    return ImageSet.from_arrays(split.images, split.labels, num_classes)


def a_dataset(**changes: object) -> Dataset:
    fields = {
        "name": "mine",
        "train": an_image_set(),
        "test": an_image_set(),
        "class_names": ("a", "b", "c"),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "mirror": True,
    }
    return Dataset(**{**fields, **changes})  # type: ignore[arg-type]


# --- ImageSet


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_rows_are_sorted_by_class_and_keep_their_order_inside_one(labels: list[int]) -> None:
    images = torch.arange(len(labels), dtype=torch.uint8).reshape(-1, 1, 1, 1)
    image_set = ImageSet.from_arrays(images, torch.tensor(labels), num_classes=6)
    for c in range(6):
        rows = [row for row, label in enumerate(labels) if label == c]
        assert image_set.of_class(c).flatten().tolist() == rows
    assert image_set.labels.tolist() == sorted(labels)


def test_offsets_are_where_classes_start_and_the_last_one_ends() -> None:
    images = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    image_set = ImageSet.from_arrays(images, torch.tensor([2, 0, 2, 2]), num_classes=4)
    assert image_set.offsets.tolist() == [0, 1, 1, 4, 4]
    assert (len(image_set), image_set.num_classes) == (4, 4)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    ("axes", "channels"),
    [((0, 1, 2, 3), 3), ((0, 2, 3, 1), 3), ((0, 1, 2, 3), 1), ((0, 2, 3, 1), 1)],
)
def test_channels_may_be_first_or_last(kind, axes, channels) -> None:  # type: ignore[no-untyped-def]
    images = random_sets(2, channels, 5, 6).train.images
    labels = kind(np.array([0, 0, 1, 1]))
    image_set = ImageSet.from_arrays(kind(images.transpose(axes).copy()), labels, num_classes=2)
    assert torch.equal(image_set.images, torch.from_numpy(images))


def test_images_without_a_channel_axis_are_grey() -> None:
    images = torch.zeros(2, 5, 6, dtype=torch.uint8)
    assert ImageSet.from_arrays(images, torch.tensor([0, 1]), 2).images.shape == (2, 1, 5, 6)


def test_arrays_that_may_not_be_written_to_are_copied() -> None:
    images = np.frombuffer(bytes(range(8)), np.uint8).reshape(2, 2, 2)
    image_set = ImageSet.from_arrays(images, np.array([0, 1]), 2)
    image_set.images.zero_()
    assert images.flatten().tolist() == list(range(8))


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.float(), LABELS, r"torch\.float32; scale to 0\.\.255 and convert to uint8$"),
        (
            np.zeros((2, 4, 4)),
            LABELS,
            r"images must be uint8, got float64; scale to 0\.\.255 and convert to uint8$",
        ),
        (IMAGES.int(), LABELS, r"uint8, got torch\.int32; convert to uint8$"),
        (IMAGES[0], LABELS, r"one for each of the 3 images, got 2"),
        (IMAGES[0, 0], LABELS, r"images must be .*, got \(4, 4\)"),
        (IMAGES[:, :2], LABELS, r"with 1 or 3 channels, got \(2, 2, 4, 4\)"),
        (IMAGES[..., :0], LABELS, r"got \(2, 3, 4, 0\)"),
        (IMAGES[:0], LABELS[:0], "at least one, got none"),
        (IMAGES, LABELS.float(), r"labels must be integers, got torch\.float32"),
        (IMAGES, np.array(["a", "b"]), "labels must be integers, got <U1"),
        (IMAGES, LABELS.bool(), r"labels must be integers, got torch\.bool"),
        (IMAGES, LABELS[:, None], r"\(N,\), got \(2, 1\)"),
        (IMAGES, LABELS[:1], "one for each of the 2 images, got 1"),
        (IMAGES, LABELS + 1, "from 0 to 1, got 2 at row 1"),
        (IMAGES, LABELS - 1, "from 0 to 1, got -1 at row 0"),
    ],
)
def test_arrays_that_are_no_image_set_are_an_error_that_says_why(
    images: Tensor, labels: Tensor, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ImageSet.from_arrays(images, labels, num_classes=2)


@pytest.mark.parametrize("c", [-1, 3])
def test_a_class_that_there_is_not_is_an_error(c: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 2, got {c}"):
        an_image_set().of_class(c)


# --- Dataset


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_are_pixels_less_mean_over_std(dtype: torch.dtype) -> None:
    data = a_dataset()
    images = data.train.images
    expected = torch.stack(
        [
            (images[:, k].double() / 255 - data.mean[k]) / data.std[k]
            for k in range(data.shape.channels)
        ],
        dim=1,
    )
    inputs = data.to_input(images, dtype)
    assert inputs.dtype == dtype
    torch.testing.assert_close(inputs, expected.to(dtype))


def test_pixels_of_inputs_are_the_images_again() -> None:
    data = a_dataset()
    images = data.train.images
    pixels = data.to_pixels(data.to_input(images))
    assert torch.equal((pixels * 255).round().to(torch.uint8), images)


def test_pixels_stay_from_0_to_1() -> None:
    pixels = a_dataset().to_pixels(torch.tensor([-100.0, 100.0]).expand(1, 3, 1, 2))
    assert pixels[0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.to_input(torch.zeros(1, 3, 4, 5)), "must be uint8, got torch.float32"),
        (lambda d: d.to_pixels(IMAGES), "must be floating point, got torch.uint8"),
        (lambda d: d.to_input(IMAGES[:, :1]), r"\(N, 3, height, width\), got \(2, 1, 4, 4\)"),
        (lambda d: d.to_pixels(torch.zeros(3, 4, 4)), r"\(N, 3, .*, got \(3, 4, 4\)"),
    ],
)
def test_images_of_another_kind_are_an_error(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((TypeError, ValueError), match=message):
        call(a_dataset())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": an_image_set(shape=(3, 4, 4))}, r"got .* of \(3, 4, 5\) and \(3, 4, 4\)"),
        ({"test": an_image_set(num_classes=4)}, "as many classes, got 3, 3 and 4"),
        ({"class_names": ("a", "b")}, "as many classes, got 2, 3 and 3"),
        ({"mean": (0.5,)}, "one for each of 3 channels, got 1 and 3"),
        (
            {"train": ImageSet.from_arrays(torch.zeros(1, 3, 4, 5).byte(), torch.tensor([1]), 3)},
            r"class 0 \(a\) has no training images",
        ),
    ],
)
def test_parts_that_do_not_fit_are_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"mine: .*{message}"):
        a_dataset(**changes)


def test_a_test_set_may_lack_a_class() -> None:
    image_set = an_image_set()
    few = ImageSet.from_arrays(image_set.of_class(0), torch.zeros(2, dtype=torch.int64), 3)
    assert len(replace(a_dataset(), test=few).test.of_class(2)) == 0


def test_statistics_are_those_of_the_pixels() -> None:
    images = an_image_set().images
    mean, std = channel_statistics(images)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.tensor(std).double(), pixels.std(1, correction=0), rtol=1e-6, atol=0
    )


def test_images_of_one_colour_have_a_deviation_to_divide_by() -> None:
    assert channel_statistics(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8))[1] == (1 / 255,)


# --- digits


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert (data.shape, data.num_classes, data.mirror) == (ImageShape(1, 8, 8), 10, False)
    source = load_digits()
    for c in range(10):
        ours = torch.cat([data.train.of_class(c), data.test.of_class(c)]).reshape(-1, 64)
        theirs = np.rint(source.data[source.target == c] * 255 / 16).astype(int)
        assert sorted(ours.tolist()) == sorted(theirs.tolist())


def test_a_fifth_of_each_digit_is_for_testing() -> None:
    data = load_dataset("digits")
    train, test = data.train.offsets.diff(), data.test.offsets.diff()
    assert torch.equal(test, ((train + test) / 5).round().long())


def test_the_split_of_digits_never_changes() -> None:
    test = load_dataset("digits").test
    weights = torch.arange(1, len(test) + 1)[:, None, None, None]
    assert int((test.images * weights).sum()) == 319953479


# --- names


@pytest.mark.parametrize("name", ["", "imagnet", "folder", "folder:", "arrays", "digits:8"])
def test_an_unknown_name_is_an_error_that_lists_those_there_are(name: str) -> None:
    with pytest.raises(ValueError, match=r"^dataset: expected one of digits, .*folder:PATH.*; got"):
        load_dataset(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("cifr10", "cifar10"), ("CIFAR-10", "cifar10"), ("fashion-mnist", "fashionmnist"),
     ("folders:x", "folder:PATH"), ("folder", "folder:PATH"), ("flowers", None), ("", None)],
)  # fmt: skip
def test_a_name_close_to_another_is_asked_back(name: str, meant: str | None) -> None:
    with pytest.raises(ValueError, match=r"^dataset: expected one of digits") as caught:
        load_dataset(name)
    end = "" if meant is None else f"; did you mean {meant}?"
    assert str(caught.value).endswith(f"got '{name}'{end}")


def test_the_name_of_a_folder_is_asked_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"; did you mean folder:{tmp_path}\?$"):
        load_dataset(str(tmp_path))
    (tmp_path / "dataset_dict.json").touch()
    with pytest.raises(ValueError, match=rf"; did you mean hub:{tmp_path}\?$"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "svhn", "mnist", "arrays:x.npz"])
def test_a_size_for_images_of_one_size_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"size is for .*folder:PATH.*; the images of {name}"):
        load_dataset(name, size=8)


def test_a_size_of_no_pixels_is_an_error() -> None:
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load_dataset("tinyimagenet", size=0)


def test_imagenet_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="imagenet has images of many sizes: give the size"):
        load_dataset("imagenet", tmp_path)


def test_every_name_says_what_it_is() -> None:
    assert all(name.about for name in DATASETS.values())
    assert set(_LOADERS) == set(DATASETS)
    assert set(KNOWN) < set(DATASETS)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_not_on_disk_is_an_error_that_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    size = 8 if name == "imagenet" else None
    with pytest.raises(DatasetNotFound) as caught:
        load_dataset(name, tmp_path, size=size)
    for part in (name, str(tmp_path), "http", f"hub:{KNOWN[name].hub}", KNOWN[name].package):
        assert part in str(caught.value)


def test_fashion_mnist_may_come_from_a_package_of_the_system(
    system_folder: Path, tmp_path: Path
) -> None:
    theirs = random_sets(10, 1, 28, 28)
    write_idx(system_folder, theirs, packed=True)
    found = load_dataset("fashionmnist", tmp_path).train.images
    assert int(found.sum()) == int(theirs.train.images.sum())
    white = Split(np.full_like(theirs.train.images, 255), theirs.train.labels)
    write_idx(tmp_path / "fashionmnist", Sets(white, theirs.test))
    assert (load_dataset("fashionmnist", tmp_path).train.images == 255).all()  # --data goes first


@pytest.mark.parametrize("name", ["folder:nowhere", "arrays:nowhere.npz"])
def test_a_path_that_is_not_there_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(DatasetNotFound, match="looked for nowhere"):
        load_dataset(name)
