"""Sets of other tools are read right, whatever their space and however they store images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmidd.datasets import Dataset, DatasetNotFound, load_dataset
from cmidd.datasets.known import KNOWN
from cmidd.datasets.statistics import channel_statistics
from cmidd.exchange import export_ddranking, export_png, export_pt
from cmidd.options.recipe import DSA
from cmidd.synthetic import SyntheticSet
from cmidd.view import cells
from tests.support.dataset_files import random_sets, write_npz, write_tinyimagenet
from tests.support.peer_files import (
    CLASSES,
    LABELS,
    converted,
    numbers,
    pixels,
    rded,
    sre2l,
    write_idc,
    write_idm,
    write_kip,
    write_pair,
    write_pictures,
    write_res,
)

N = len(LABELS)
COLOUR, GREY = (3, 32, 32), (1, 28, 28)
MEAN, STD = (
    torch.tensor(each).view(3, 1, 1) for each in (KNOWN["cifar10"].mean, KNOWN["cifar10"].std)
)


@pytest.fixture
def real(elsewhere: Path) -> Dataset:
    """Ten classes of grey images of 8 x 8, which `arrays:real.npz` names."""
    write_npz(elsewhere / "real.npz", random_sets(CLASSES, 1, 8, 8))
    return load_dataset("arrays:real.npz")


# --- one tool after another


def test_a_res_file_of_dc_is_kept_as_it_is(tmp_path: Path) -> None:
    images = numbers(N, *COLOUR)
    found = converted(write_res(tmp_path / "res_DM_CIFAR10_ConvNet_2ipc.pt", images), factor=1)
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, LABELS)
    assert (found.soft_labels, found.whitening, found.learned_lr) == (None, None, None)
    about = {"format": "res", "file": "res_DM_CIFAR10_ConvNet_2ipc.pt", "space": "normalised"}
    record = {"converted": about, "dataset": "cifar10", "ipc": 2, "network": "convnet",
              "evaluation": {"epochs": 1000, "augmentation": DSA}}  # fmt: skip
    assert record.items() <= found.record.items()
    assert found.record["class_names"][3] == "cat"
    assert "view" not in found.record
    torch.testing.assert_close(found.pixels(), (images * STD + MEAN).clamp(0, 1))


@pytest.mark.parametrize("experiment", [0, 1])
def test_the_experiment_of_a_res_file_is_the_one_that_is_told(
    experiment: int, tmp_path: Path
) -> None:
    both = numbers(N, *GREY), numbers(N, *GREY, seed=1)
    path = write_res(tmp_path / "res.pt", *both)
    found = converted(path, "fashionmnist", factor=1, experiment=experiment)
    assert torch.equal(found.images, both[experiment])
    assert found.record["converted"]["experiment"] == experiment


def test_a_pair_of_mtt_has_hard_labels_and_no_step_size(tmp_path: Path) -> None:
    images = numbers(N, *COLOUR)
    found = converted(write_pair(tmp_path, images, LABELS), space="normalised")
    assert torch.equal(found.images, images)
    assert (found.soft_labels, found.learned_lr) == (None, None)
    assert "network" not in found.record
    told = converted(write_pair(tmp_path, images, LABELS), space="normalised", lr="0.02")
    assert told.learned_lr == 0.02


def test_a_pair_of_datm_has_logits_and_a_step_size(tmp_path: Path) -> None:
    logits = (3 * numbers(N, CLASSES)).requires_grad_()
    path = write_pair(
        tmp_path, numbers(N, *COLOUR), logits, torch.tensor(0.03, requires_grad=True), it="5000"
    )
    found = converted(path, space="normalised")
    order = logits.argmax(1).argsort(stable=True)
    assert found.soft_labels is not None
    torch.testing.assert_close(found.soft_labels, logits.detach().softmax(1)[order])
    assert torch.equal(found.labels, logits.argmax(1)[order])
    assert found.learned_lr == pytest.approx(0.03)


def test_labels_and_step_size_may_lie_elsewhere(tmp_path: Path) -> None:
    path = write_pair(tmp_path, numbers(N, *GREY), LABELS, torch.tensor([0.5]))
    places = [tmp_path / name for name in ("pictures", "classes", "rate")]
    for name, place in zip(("images_best", "labels_best", "lr_best"), places, strict=True):
        path.with_name(f"{name}.pt").rename(place)
    told = {"space": "normalised", "labels": places[1], "lr": str(places[2])}
    found = converted(places[0], "mnist", **told)
    assert torch.equal(found.labels, LABELS)
    assert found.learned_lr == 0.5


@pytest.mark.parametrize(
    ("images", "labels", "lr"),
    [
        ("CIFAR10_IPC10_images.pt", "CIFAR10_IPC10_labels.pt", None),
        ("images_100.pt", "labels_100.pt", "syn_lr_100.pt"),
        ("images.pt", "labels.pt", "lr.pt"),
    ],
)
def test_what_lies_beside_the_images_has_the_name_that_tools_give_it(
    images: str, labels: str, lr: str | None, tmp_path: Path
) -> None:
    torch.save(numbers(N, *GREY), tmp_path / images)
    torch.save(LABELS, tmp_path / labels)
    if lr is not None:
        torch.save(torch.tensor(0.25), tmp_path / lr)
    found = converted(tmp_path / images, "mnist", space="normalised")
    assert torch.equal(found.labels, LABELS)
    assert found.learned_lr == (None if lr is None else 0.25)


def test_probabilities_are_told_from_logits(tmp_path: Path) -> None:
    soft = (3 * torch.eye(CLASSES)[LABELS] + pixels(N, CLASSES)).softmax(1)
    found = converted(write_pair(tmp_path, numbers(N, *GREY), soft), "mnist", space="normalised")
    assert found.soft_labels is not None
    assert torch.equal(found.soft_labels, soft)
    rows = 1 + pixels(N, CLASSES) + torch.eye(CLASSES)[LABELS]  # neither below 0 nor adding up to 1
    path = write_pair(tmp_path, numbers(N, *GREY), rows)
    with pytest.raises(ValueError, match=r"^soft_labels: .* say whether they are logits or prob"):
        converted(path, "mnist", space="normalised")
    found = converted(path, "mnist", space="normalised", soft_labels="logits")
    assert found.soft_labels is not None
    torch.testing.assert_close(found.soft_labels, rows.softmax(1))


def test_probabilities_that_rounding_left_below_0_are_asked_for(tmp_path: Path) -> None:
    soft = torch.eye(CLASSES)[LABELS]
    soft[:, 0] -= 1e-6
    path = write_pair(tmp_path, numbers(N, *GREY), soft)
    with pytest.raises(
        ValueError, match=r"^soft_labels: .* add up to 1, and numbers below 0; say whe"
    ):
        converted(path, "mnist", space="normalised")
    found = converted(path, "mnist", space="normalised", soft_labels="probabilities")
    assert found.soft_labels is not None
    assert found.soft_labels.min() == 0
    assert torch.equal(found.labels, LABELS)
    torch.testing.assert_close(found.soft_labels, torch.eye(CLASSES)[LABELS])
    found = converted(path, "mnist", space="normalised", soft_labels="logits")
    torch.testing.assert_close(found.soft_labels, soft.softmax(1))


def test_whitened_images_take_the_whitening_of_the_real_ones(real: Dataset) -> None:
    images = numbers(N, 1, 8, 8)
    found = converted(write_pair(Path(), images, LABELS), real.name, space="whitened")
    expected = real.whitened()
    assert found.whitening is not None
    assert expected.whitening is not None
    assert torch.equal(found.images, images)
    assert torch.equal(found.whitening.matrix, expected.whitening.matrix)
    assert found.record["zca"] == expected.whitening.eps
    torch.testing.assert_close(found.pixels(), expected.to_pixels(images))


def test_images_zca_of_mtt_are_pixels_again(tmp_path: Path) -> None:
    shown = pixels(N, *COLOUR)
    path = write_pair(tmp_path, shown, LABELS, it="zca_5000")
    with pytest.raises(ValueError, match=r"^space: .* pixels \(images_zca_\*\.pt, of which MTT"):
        converted(path)
    torch.testing.assert_close(converted(path, space="pixels").pixels(), shown)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_idc_and_ncfm_store_pixels_that_networks_see_enlarged(factor: int, tmp_path: Path) -> None:
    stored = pixels(N, *COLOUR)
    found = converted(write_idc(tmp_path / "data.pt", stored), factor=factor)
    expected, labels = cells(stored, LABELS, factor=factor, grey=(0.5, 0.5, 0.5))
    torch.testing.assert_close(found.pixels(), expected, atol=1e-5, rtol=0)
    assert torch.equal(found.seen().labels, labels)
    torch.testing.assert_close(found.images, (stored - MEAN) / STD)
    assert found.record["ipc"] == 2


@pytest.mark.parametrize("write", [write_idm, write_res])
def test_quadrants_of_idm_are_column_by_column(write: Callable[..., Path], tmp_path: Path) -> None:
    stored = numbers(N, *COLOUR)
    found = converted(write(tmp_path / "acc_0.5.pkl", stored), factor=2)
    assert torch.equal(found.images, stored)
    expected, labels = cells(stored, LABELS, factor=2, order="columns")
    assert torch.equal(found.seen().images, expected)
    assert torch.equal(found.seen().labels, labels)


def standardised(real: Dataset, shown: Tensor) -> Tensor:
    """By the mean and deviation of all training pixels, as they are."""
    mean, std = channel_statistics(real.train.images)
    return (shown - mean[0]) / std[0]


def test_kip_has_channels_last_and_the_deviation_of_the_data(real: Dataset) -> None:
    shown = pixels(N, 1, 8, 8)
    path = write_kip(Path("kip_nozca.npz"), standardised(real, shown))
    found = converted(path, real.name, space="standardised")
    torch.testing.assert_close(found.pixels(), shown)
    assert torch.equal(found.labels, LABELS)
    assert found.soft_labels is None  # targets of a regression, which are no probabilities


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_may_be_of_either_order_of_bytes(order: str, tmp_path: Path) -> None:
    shown = pixels(N, *GREY)
    images, labels = shown.permute(0, 2, 3, 1).numpy(), LABELS.numpy()
    path = tmp_path / "kip.npz"
    np.savez(path, images=images.astype(f"{order}f4"), labels=labels.astype(f"{order}i8"))
    found = converted(path, "mnist", space="pixels")
    torch.testing.assert_close(found.pixels(), shown)
    assert torch.equal(found.labels, LABELS)


def test_a_list_of_kip_has_its_classes_in_order(real: Dataset) -> None:
    shown = pixels(N, 1, 8, 8)
    torch.save([standardised(real, shown).permute(0, 2, 3, 1)], "kip_ipc2.pt")
    found = converted(Path("kip_ipc2.pt"), real.name, space="standardised")
    torch.testing.assert_close(found.pixels(), shown)
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize("name", [sre2l, rded])
@pytest.mark.parametrize(("dataset", "shape"), [("cifar10", COLOUR), ("fashionmnist", GREY)])
def test_pictures_are_read_class_by_class(
    name: Callable[[int, int], str], dataset: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    flat = (255 * pixels(N, shape[0], 1, 1)).byte().expand(N, *shape)  # which JPEG hardly changes
    found = converted(write_pictures(tmp_path / "syn", flat, name), dataset)
    torch.testing.assert_close(found.pixels(), flat / 255, atol=3 / 255, rtol=0)
    assert torch.equal(found.labels, LABELS)


def test_hidden_pictures_and_folders_are_left_out(tmp_path: Path) -> None:
    flat = torch.full((N, *GREY), 128, dtype=torch.uint8)
    folder = write_pictures(tmp_path / "syn", flat, rded)
    (folder / "00000" / "._0.png").write_bytes(b"of another system, and no picture")
    write_pictures(folder / ".ipynb_checkpoints", flat[:1], lambda c, k: f"{c}{k}.png")
    assert torch.equal(converted(folder, "fashionmnist").labels, LABELS)


# --- what we write comes back


@pytest.fixture
def soft_set(real: Dataset) -> SyntheticSet:
    """Whitened, with soft labels and a step size."""
    soft = (4 * torch.eye(CLASSES)[LABELS] + pixels(N, CLASSES)).softmax(1)
    made = SyntheticSet.of(real.whitened(), numbers(N, 1, 8, 8), LABELS, {"learned_lr": 0.25})
    return replace(made, soft_labels=soft)


def test_our_pair_comes_back_bit_by_bit(real: Dataset, soft_set: SyntheticSet) -> None:
    export_pt(soft_set, Path("pt"))
    found = converted(Path("pt/images_best.pt"), real.name, space="whitened")
    assert torch.equal(found.images, soft_set.images)
    assert torch.equal(found.targets, soft_set.targets)
    assert found.learned_lr == 0.25
    assert torch.equal(found.pixels(), soft_set.pixels())


def test_what_ddranking_takes_is_in_order_decoded_and_logits(
    real: Dataset, soft_set: SyntheticSet
) -> None:
    backwards = torch.arange(N - 1, -1, -1)
    assert soft_set.soft_labels is not None
    soft = soft_set.soft_labels.clone()
    soft[0] = torch.eye(CLASSES)[0]  # of which others have the logarithm -inf
    view = {"name": "cells", "settings": {"factor": 2}}
    mixed = replace(
        soft_set,
        source=soft_set.images[backwards],
        labels=LABELS[backwards],
        soft_labels=soft[backwards],
        record={**soft_set.record, "view": view},
    )
    export_ddranking(mixed, Path("dd"))
    images, labels, lr = (
        torch.load(f"dd/{name}.pt", weights_only=True) for name in ("images", "labels", "lr")
    )
    seen, _ = cells(soft_set.images[backwards], backwards, factor=2)
    order = LABELS[backwards].repeat_interleave(4).argsort(stable=True)
    assert torch.equal(images, seen[order])
    expected = soft[backwards].repeat_interleave(4, dim=0)[order]
    torch.testing.assert_close(labels.softmax(1), expected)
    assert labels.isfinite().all()
    assert (lr.shape, lr.item()) == ((), 0.25)
    found = converted(Path("dd/images.pt"), real.name, space="whitened")
    assert torch.equal(found.images, images)
    torch.testing.assert_close(found.soft_labels, expected)
    assert found.learned_lr == 0.25


def test_what_ddranking_takes_of_hard_labels_are_classes(real: Dataset) -> None:
    export_ddranking(SyntheticSet.of(real, numbers(N, 1, 8, 8), LABELS), Path("dd"))
    labels = torch.load("dd/labels.pt", weights_only=True)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)
    assert not Path("dd/lr.pt").exists()


def test_our_png_files_come_back(real: Dataset) -> None:
    made = SyntheticSet.of(real, real.to_input(real.train.images), real.train.labels)
    export_png(made, Path("png"))
    found = converted(Path("png"), real.name)
    assert torch.equal(found.labels, made.labels)
    torch.testing.assert_close(found.pixels(), made.pixels(), atol=1e-6, rtol=0)


# --- forms that differ


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_of_another_precision_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    images = numbers(N, *GREY).to(dtype)
    for write in (write_res, write_idm):
        found = converted(write(tmp_path / "file", images), "mnist", factor=1)
        assert torch.equal(found.images, images.float())


def test_images_in_any_order_come_out_class_by_class(tmp_path: Path) -> None:
    images, order = numbers(N, *GREY), torch.randperm(N, generator=torch.Generator().manual_seed(0))
    path = write_res(tmp_path / "res.pt", images[order], labels=LABELS[order].to(torch.uint8))
    found = converted(path, "mnist", factor=1)
    assert torch.equal(found.labels, LABELS)
    for c in range(CLASSES):
        assert torch.equal(found.images[c == LABELS], images[order][LABELS[order] == c])


def test_a_view_of_other_memory_is_read_as_it_is_seen(tmp_path: Path) -> None:
    wide = numbers(2 * N, 28, 28, 1).permute(0, 3, 1, 2)
    found = converted(write_idm(tmp_path / "acc.pkl", wide[::2]), "mnist", factor=1)
    assert torch.equal(found.images, wide[::2])


def test_real_images_are_loaded_only_where_nothing_else_will_do(tmp_path: Path) -> None:
    told: dict[str, Any] = {"data": tmp_path / "nothing", "space": "whitened"}
    path = write_pair(tmp_path, numbers(N, *COLOUR), LABELS)
    with pytest.raises(
        DatasetNotFound, match=r"^dataset: the training images are needed for the whitening, and c"
    ):
        converted(path, **told)
    torch.save(numbers(400, 3, 64, 64), tmp_path / "images_best.pt")
    with pytest.raises(DatasetNotFound, match=r"^dataset: .* needed for the names of its classes"):
        converted(path, "tinyimagenet", **told)


def test_classes_of_tiny_imagenet_are_its_folders(tmp_path: Path) -> None:
    folder = write_tinyimagenet(tmp_path, random_sets(CLASSES, 3, 64, 64))
    for picture in folder.rglob("*.JPEG"):
        picture.unlink()  # none is needed
    path = write_res(tmp_path / "res.pt", numbers(N, 3, 64, 64))
    found = converted(path, "tinyimagenet", factor=1, data=tmp_path)
    assert found.record["class_names"] == [f"n{c:08}" for c in range(CLASSES)]
    assert (found.record["network"], found.record["shape"]) == ("convnet:depth=4", [3, 64, 64])
    assert found.record["mean"] == list(KNOWN["tinyimagenet"].mean)


def test_names_of_classes_are_those_that_files_have() -> None:
    assert [len(known.class_names) for known in KNOWN.values()] == [10, 100, 10, 10, 10, 0, 0]
    names = KNOWN["cifar100"].class_names
    assert sorted(set(names)) == list(names)
