from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from cmidd import synthetic
from cmidd.exchange import export_png, export_pt
from cmidd.first_images import first_images
from cmidd.storage.tensor_file import FileError, write_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CLASSES, PER_CLASS, tiny_dataset

DATASET = tiny_dataset()
WHITENED = DATASET.whitened()
RECORD: dict[str, Any] = {**DATASET.describe(), "class_names": list(CLASSES)}


def a_set(ipc: int = 2, init: str = "noise", **changes: Any) -> SyntheticSet:
    return SyntheticSet(*first_images(DATASET, ipc, init, 0), {**RECORD, **changes})


def real_of(c: int) -> Tensor:
    return DATASET.to_input(DATASET.train.of_class(c))


@pytest.mark.parametrize("init", ["noise", "real", "mix"])
@pytest.mark.parametrize("ipc", [1, 2, PER_CLASS])
def test_a_start_has_ipc_images_of_each_class_in_order(init: str, ipc: int) -> None:
    images, labels = first_images(DATASET, ipc, init, 0)
    assert images.shape == (len(CLASSES) * ipc, *DATASET.shape)
    assert images.dtype == torch.float32
    assert labels.tolist() == [c for c in range(len(CLASSES)) for _ in range(ipc)]


@pytest.mark.parametrize("init", ["noise", "real", "mix"])
def test_a_start_depends_on_the_seed_alone(init: str) -> None:
    images, _ = first_images(DATASET, 2, init, 0)
    torch.manual_seed(1)
    assert torch.equal(first_images(DATASET, 2, init, 0)[0], images)
    assert not torch.equal(first_images(DATASET, 2, init, 1)[0], images)


def test_noise_is_normal() -> None:
    images, _ = first_images(DATASET, 500, "noise", 0)
    assert abs(float(images.mean())) < 0.02
    assert abs(float(images.std()) - 1) < 0.02


def test_real_takes_each_image_of_the_class_once() -> None:
    images, labels = first_images(DATASET, PER_CLASS, "real", 0)
    for c in range(len(CLASSES)):
        of_class = images[labels == c]
        same = (of_class[:, None] == real_of(c)[None]).flatten(2).all(2)
        assert same.sum(0).tolist() == same.sum(1).tolist() == [1] * PER_CLASS


def test_mix_is_between_two_real_images_of_the_class() -> None:
    images, labels = first_images(DATASET, 3, "mix", 0)
    shares = []
    for image, label in zip(images, labels.tolist(), strict=True):
        real = real_of(label).flatten(1)
        first, second = torch.meshgrid(*[torch.arange(PER_CLASS)] * 2, indexing="ij")
        a, difference = real[first.flatten()], (real[second.flatten()] - real[first.flatten()])
        length = difference.square().sum(1).clamp_min(1e-9)
        share = ((image.flatten() - a) * difference).sum(1) / length
        off = (a + share[:, None] * difference - image.flatten()).abs().amax(1)
        assert off.min() < 1e-5
        shares.append(float(share[off.argmin()]))
    assert all(-1e-5 <= share <= 1 + 1e-5 for share in shares)
    assert len({round(share, 3) for share in shares}) > len(shares) // 2


def test_a_start_from_a_file_is_its_images(tmp_path: Path) -> None:
    before = a_set(3)
    before.save(tmp_path / "set")
    images, labels = first_images(DATASET, 3, f"file:{tmp_path / 'set'}", 0)
    assert torch.equal(images, before.images)
    assert torch.equal(labels, before.labels)


@pytest.mark.parametrize("ipc", [2, 4])
def test_a_start_from_a_file_with_other_images_per_class_is_an_error(
    tmp_path: Path, ipc: int
) -> None:
    a_set(3).save(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"{tmp_path}/set: expected {3 * ipc} images"):
        first_images(DATASET, ipc, f"file:{tmp_path / 'set'}", 0)


def test_a_start_from_a_file_of_another_dataset_is_an_error(tmp_path: Path) -> None:
    a_set(dataset="other").save(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"{tmp_path}/set: expected dataset tiny .* got other"):
        first_images(DATASET, 2, f"file:{tmp_path / 'set'}", 0)


@pytest.mark.parametrize("init", ["real", "mix"])
def test_more_images_than_a_class_has_is_an_error_that_names_it(init: str) -> None:
    with pytest.raises(ValueError, match=r"ipc: class ant of tiny has 6 real images, fewer than 7"):
        first_images(DATASET, PER_CLASS + 1, init, 0)


@pytest.mark.parametrize("init", ["", "Real", "zeros", "file"])
def test_an_unknown_start_is_an_error(init: str) -> None:
    with pytest.raises(ValueError, match="init: expected noise, real, mix or file:PATH"):
        first_images(DATASET, 1, init, 0)


def test_a_set_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    before = a_set()
    before.save(tmp_path / "set")
    after = SyntheticSet.load(tmp_path / "set")
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


@pytest.mark.parametrize("channels", [1, 3])
def test_exported_png_are_the_pixels_in_a_folder_for_each_class(
    tmp_path: Path, channels: int
) -> None:
    dataset = tiny_dataset(channels=channels)
    record = {**dataset.describe(), "class_names": list(CLASSES)}
    exported = SyntheticSet(*first_images(dataset, 2, "real", 0), record)
    export_png(exported, tmp_path)
    files = sorted(tmp_path.rglob("*.png"))
    names = ["000_ant", "001_bee", "002_cat"]
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        f"{name}/{number:04d}.png" for name in names for number in range(2)
    ]
    for file, pixels in zip(files, exported.pixels(), strict=True):
        array = np.atleast_3d(np.asarray(Image.open(file)))
        assert array.shape == (8, 8, channels)
        torch.testing.assert_close(
            torch.from_numpy(array.copy()).permute(2, 0, 1), (pixels * 255).round().byte()
        )


def test_exported_png_stay_in_the_folder_whatever_the_class_names(tmp_path: Path) -> None:
    names = ["..", "/etc", "a/../../b", ".", "", "a/b", "a_b", "a\0b", "x" * 300, "é\n"]
    images = torch.zeros(len(names), 1, 8, 8)
    out = tmp_path / "inner" / "out"
    export_png(
        SyntheticSet(images, torch.arange(len(names)), {**RECORD, "class_names": names}), out
    )
    assert [path for path in tmp_path.rglob("*.png") if path.parent.parent != out] == []
    assert len(list(out.glob("*/*.png"))) == len(names)


def test_classes_that_are_not_in_order_are_numbered_one_by_one(tmp_path: Path) -> None:
    images = torch.tensor([-2.0, -1, 0, 1, 2]).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    labels = torch.tensor([1, 0, 1, 0, 1])
    export_png(SyntheticSet(images, labels, RECORD), tmp_path)
    for name, expected in (("000_ant", [64, 191]), ("001_bee", [0, 128, 255])):
        files = sorted((tmp_path / name).iterdir())
        assert [int(np.asarray(Image.open(file))[0, 0]) for file in files] == expected


def test_exported_tensors_are_what_scripts_of_the_field_load(tmp_path: Path) -> None:
    exported = a_set()
    export_pt(exported, tmp_path / "new")
    for name, tensor in (("images", exported.images), ("labels", exported.labels)):
        found = torch.load(tmp_path / "new" / f"{name}_best.pt", weights_only=True)
        assert torch.equal(found, tensor)


def test_an_export_is_not_mixed_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    made = SyntheticSet(*first_images(DATASET, 1, "real", 0))
    for export in (export_png, export_pt):
        with pytest.raises(FileExistsError, match="expected a new or an empty folder"):
            export(made, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "wrong",
    [{"class_names": ["a"]}, {"mean": "x"}, {"std": [1.0] * 7}, {"network": ["convnet"]},
     {"evaluation": []}, {"evaluation": {"epochs": "3"}}, {"evaluation": {"lr": 1.0}}],
)  # fmt: skip
def test_a_record_that_does_not_fit_its_images_is_an_error(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    images, labels = first_images(DATASET, 1, "real", 0)
    record = {**DATASET.describe(), "class_names": list(DATASET.class_names), **wrong}
    SyntheticSet(images, labels, record).save(tmp_path / "set")
    with pytest.raises(FileError, match="set: "):
        SyntheticSet.load(tmp_path / "set")


# --- soft labels, whitening, learned step sizes


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


def test_exports_of_a_whitened_set(tmp_path: Path) -> None:
    made = whitened_set()
    export_pt(made, tmp_path / "pt")
    for name, tensor in (("images", made.images), ("labels", made.targets)):
        found = torch.load(tmp_path / "pt" / f"{name}_best.pt", weights_only=True)
        assert torch.equal(found, tensor)
    export_png(made, tmp_path / "png")
    export_png(a_set(2, "real"), tmp_path / "plain")
    for file in (tmp_path / "plain").rglob("*.png"):
        same = tmp_path / "png" / file.relative_to(tmp_path / "plain")
        assert np.array_equal(np.asarray(Image.open(same)), np.asarray(Image.open(file)))


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


def test_a_whitening_of_another_eps_is_no_start(tmp_path: Path) -> None:
    whitened_set().save(tmp_path / "set")
    with pytest.raises(ValueError, match=r"init: .*set: expected zca 0\.2 .* got 1\.6"):
        first_images(DATASET.whitened(0.2), 2, f"file:{tmp_path / 'set'}", 0)
