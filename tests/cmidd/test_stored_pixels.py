"""Sets whose images are kept as pixels, batch by batch."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmidd.storage.tensor_file import FileError, bytes_of, metadata, record_of
from cmidd.stored_pixels import NOTHING, as_items
from cmidd.synthetic import KIND, SyntheticSet
from tests.support.recovered import made, recover_options, tiny_recovery, tiny_teachers
from tests.support.tiny import tiny_dataset


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recovered set of two batches, of which the second is half full."""
    folder = tmp_path_factory.mktemp("pixels")
    options = recover_options(tiny_teachers(folder / "teachers"), iterations=1)
    return made(folder / "run", tiny_recovery(options))


def test_its_images_come_class_by_class_as_networks_take_them(file: Path) -> None:
    found, tensors = SyntheticSet.load(file), load_file(file)
    assert tensors["pixels"].shape == (2, 4, 1, 8, 8)
    assert tensors["labels"].tolist() == [[0, 0, 1, 1], [2, 2, NOTHING, NOTHING]]
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    there = tensors["pixels"].flatten(0, 1)[:6]
    assert torch.equal(found.images, tiny_dataset().to_input(there))
    assert torch.equal((found.pixels() * 255).round().to(torch.uint8), there)


def test_images_of_any_order_are_sorted_and_stay_in_it(tmp_path: Path) -> None:
    options = recover_options(
        tiny_teachers(tmp_path / "teachers"), iterations=0, order="image", batch_size=2
    )
    recovery = tiny_recovery(options)
    found = SyntheticSet.load(made(tmp_path / "run", recovery))
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for item in range(len(recovery.batches)):
        labels, numbers = recovery.batches[item]
        pixels = recovery.batch(item).pixels()
        places = 2 * labels + numbers
        assert torch.equal((found.pixels()[places] * 255).round().to(torch.uint8), pixels)


def test_a_batch_is_filled_up_with_nothing() -> None:
    kept = as_items(torch.ones(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([4, 5]), 3)
    assert kept["labels"].tolist() == [4, 5, NOTHING]
    assert kept["pixels"].flatten(1).tolist() == [[1] * 4, [1] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixels": torch.zeros(2, 4, 1, 8, 8)}, "expected uint8 pixels"),
        ({"pixels": torch.zeros(2, 4, 1, 8, 9, dtype=torch.uint8)}, "expected uint8 pixels"),
        ({"labels": torch.zeros(8, dtype=torch.int64)}, "expected uint8 pixels"),
        ({"labels": None}, "expected uint8 pixels"),
        ({"trained": torch.tensor([1, 0], dtype=torch.uint8)}, "only 1 of 2 batches are made"),
        ({"crc32 of labels": None}, "expected a checksum of each batch's labels"),
        ({"pixels": torch.zeros(2, 4, 1, 8, 8, dtype=torch.uint8)}, "a piece of pixels: expected"),
        ({"labels": torch.full((2, 4), 3)}, "a piece of labels: expected the checksum"),
    ],
)
def test_a_file_of_other_tensors_is_an_error_that_names_it(
    file: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    tensors = {**load_file(file), **changes}
    path, record = tmp_path / "file", record_of(file)
    about = metadata(KIND, {k: v for k, v in record.items() if k not in ("kind", "format")})
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(given, path, about)
    with pytest.raises(FileError, match=rf"{path}: .*{words}|{path}: {words}"):
        SyntheticSet.load(path)


def test_labels_that_are_none_are_an_error(file: Path, tmp_path: Path) -> None:
    tensors, record = load_file(file), record_of(file)
    tensors["labels"] = torch.full((2, 4), 3)
    sums = [zlib.crc32(bytes_of(batch)) for batch in tensors["labels"]]
    tensors["crc32 of labels"] = torch.tensor(sums)
    about = metadata(KIND, {k: v for k, v in record.items() if k not in ("kind", "format")})
    save_file(tensors, tmp_path / "file", about)
    with pytest.raises(FileError, match=r"labels .*from 0 to 2"):
        SyntheticSet.load(tmp_path / "file")


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": 0.5},
        {"mean": ["a"]},
        {"mean": [0.5, 0.5]},
        {"mean": None},
        {"std": {}},
        {"std": [[0.25]]},
        {"shape": 3},
        {"shape": ["a", 8, 8]},
    ],
)
def test_a_hostile_record_is_an_error_that_names_the_file(
    file: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path, record = tmp_path / "file", {**record_of(file), **changes}
    about = metadata(KIND, {k: v for k, v in record.items() if k not in ("kind", "format")})
    save_file(load_file(file), path, about)
    with pytest.raises(FileError, match=str(path)):
        SyntheticSet.load(path)


@pytest.mark.parametrize("changes", [{"std": [0.0]}, {"mean": [float("nan")]}])
def test_numbers_that_are_not_finite_are_an_error(
    file: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path, record = tmp_path / "file", {**record_of(file), **changes}
    about = metadata(KIND, {k: v for k, v in record.items() if k not in ("kind", "format")})
    save_file(load_file(file), path, about)
    with pytest.raises(FileError, match=f"{path}: expected finite images, got NaN or Inf"):
        SyntheticSet.load(path)


def test_a_file_that_is_cut_short_is_an_error(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for length in (0, 7, 300, len(whole) - 1):
        (tmp_path / "file").write_bytes(whole[:length])
        with pytest.raises(FileError, match=rf"{tmp_path / 'file'}: expected a safetensors file"):
            SyntheticSet.load(tmp_path / "file")


def test_one_that_grows_says_how_it_goes_on(file: Path, tmp_path: Path) -> None:
    (tmp_path / "result.safetensors.partial").write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"the synthetic set is not complete; .* --resume"):
        SyntheticSet.load(tmp_path)


def test_what_else_a_file_holds_is_not_used(file: Path, tmp_path: Path) -> None:
    """No checksum is of it, and no row of it belongs to an image."""
    path, record = tmp_path / "file", record_of(file)
    about = {k: v for k, v in record.items() if k not in ("kind", "format")}
    more = {"soft_labels": torch.full((6, 3), 1 / 3), "images": torch.zeros(6, 1, 8, 8),
            "whitening_mean": torch.zeros(64), "whitening_matrix": torch.eye(64)}  # fmt: skip
    save_file({**load_file(file), **more}, path, metadata(KIND, about))
    found = SyntheticSet.load(path)
    assert found.soft_labels is None
    assert found.whitening is None
    assert torch.equal(found.images, SyntheticSet.load(file).images)
    save_file({**load_file(file), **more}, path, metadata(KIND, {**about, "zca": 0.1}))
    with pytest.raises(FileError, match=f"{path}: expected whitening_mean, .*, got zca 0.1"):
        SyntheticSet.load(path)
