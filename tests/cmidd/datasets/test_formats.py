from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from cmidd.datasets import Dataset, ImageSet, ImageShape, load_dataset
from cmidd.datasets.known import KNOWN
from tests.support import dataset_files as files
from tests.support.dataset_files import LAYOUTS, Layout, Sets, Split, random_sets, smooth


def assert_same(image_set: ImageSet, split: Split, tolerance: int = 0) -> None:
    expected = split.sorted
    assert image_set.labels.tolist() == expected.labels.tolist()
    difference = image_set.images.int() - torch.from_numpy(expected.images.astype(np.int32))
    assert difference.abs().max() <= tolerance


def assert_read(data: Dataset, sets: Sets, tolerance: int = 0) -> None:
    assert_same(data.train, sets.train, tolerance)
    assert_same(data.test, sets.test, tolerance)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_what_is_read_is_what_was_written(layout: Layout, tmp_path: Path) -> None:
    sets = layout.random_sets()
    layout.write(tmp_path, sets)
    data = load_dataset(layout.name, tmp_path)
    assert_read(data, sets)
    assert data.shape == ImageShape(*layout.shape)
    assert data.num_classes == layout.num_classes


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_standard_sets_have_the_published_statistics(layout: Layout, tmp_path: Path) -> None:
    layout.write(tmp_path, layout.random_sets())
    data, known = load_dataset(layout.name, tmp_path), KNOWN[layout.name]
    assert (data.name, data.mean, data.std) == (layout.name, known.mean, known.std)
    assert data.mirror == (layout.name not in ("mnist", "svhn"))


@pytest.mark.parametrize("layout", ["CIFAR-10 binary", "CIFAR-100 Python"])
def test_cifar_names_its_classes(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout].write(tmp_path, LAYOUTS[layout].random_sets())
    names = load_dataset(LAYOUTS[layout].name, tmp_path).class_names
    assert names == tuple(f"class{c}" for c in range(LAYOUTS[layout].num_classes))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_cifar_that_python_3_pickled_again_is_read(
    protocol: int, order: Literal["C", "F"], tmp_path: Path
) -> None:
    layout = LAYOUTS["CIFAR-10 Python"]
    sets = layout.random_sets()
    folder = layout.write(tmp_path, sets)
    data = np.array(sets.test.images.reshape(-1, 3072), order=order)
    content = {"data": data, "labels": sets.test.labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol))
    assert_read(load_dataset("cifar10", tmp_path), sets)


def test_tiny_imagenet_is_read(tmp_path: Path) -> None:
    sets = random_sets(4, 3, 64, 64)
    sets = Sets(smooth(sets.train), smooth(sets.test))
    files.write_tinyimagenet(tmp_path, sets)
    data = load_dataset("tinyimagenet", tmp_path)
    assert_read(data, sets, tolerance=3)
    assert data.class_names[1] == "n00000001"
    assert data.mean == KNOWN["tinyimagenet"].mean


def test_grey_images_of_tiny_imagenet_become_colour(tmp_path: Path) -> None:
    grey = random_sets(2, 1, 64, 64)
    grey = Sets(smooth(grey.train), smooth(grey.test))
    files.write_tinyimagenet(tmp_path, grey)
    colour = Sets(*(Split(s.images.repeat(3, axis=1), s.labels) for s in (grey.train, grey.test)))
    assert_read(load_dataset("tinyimagenet", tmp_path), colour, tolerance=3)


@pytest.mark.parametrize("where", ["imagenet", "."])
def test_imagenet_is_made_to_size(where: str, tmp_path: Path) -> None:
    sets = random_sets(3, 3, 9, 12)
    sets = Sets(smooth(sets.train), smooth(sets.test))
    files.write_tree(tmp_path / where, sets, test="val", suffix=".JPEG")
    data = load_dataset("imagenet", tmp_path, size=8)
    assert data.shape == (3, 8, 8)
    small = Sets(*(Split(s.images[..., :8, :8], s.labels) for s in (sets.train, sets.test)))
    assert_read(data, small, tolerance=3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tiff"])
def test_a_folder_is_read(channels: int, test: str, suffix: str, tmp_path: Path) -> None:
    sets = random_sets(3, channels, 5, 7)
    files.write_tree(tmp_path, sets, test, suffix)
    data = load_dataset(f"folder:{tmp_path}")
    assert_read(data, sets)
    assert data.class_names == ("c000", "c001", "c002")
    assert data.mirror


def test_one_colour_image_makes_a_folder_of_grey_ones_colour(tmp_path: Path) -> None:
    sets = random_sets(2, 1, 5, 5)
    files.write_tree(tmp_path, sets)
    files.save_image(tmp_path / "test" / "c001" / "more.png", np.zeros((3, 5, 5), np.uint8))
    data = load_dataset(f"folder:{tmp_path}")
    assert_same(data.train, Split(sets.train.images.repeat(3, axis=1), sets.train.labels))


def test_files_that_are_no_images_are_passed_over(tmp_path: Path) -> None:
    sets = random_sets(2, 3, 5, 5)
    files.write_tree(tmp_path, sets)
    for name in ("Thumbs.db", "._0000.png", "labels.txt"):
        (tmp_path / "train" / "c000" / name).write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    assert_read(load_dataset(f"folder:{tmp_path}"), sets)


@pytest.mark.parametrize("tall", [False, True])
def test_a_size_takes_the_middle_of_each_image(tall: bool, tmp_path: Path) -> None:
    pixels = random_sets(1, 3, 4, 12).train.images[0]
    small = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).resize((6, 2)))[:, 2:4]
    expected = small.transpose(2, 1, 0) if tall else small.transpose(2, 0, 1)
    for split in ("train", "test"):
        path = tmp_path / split / "a" / "0.png"
        files.save_image(path, pixels.transpose(0, 2, 1) if tall else pixels)
    images = load_dataset(f"folder:{tmp_path}", size=2).train.images
    assert (images[0].int() - torch.from_numpy(expected.astype(np.int32))).abs().max() <= 1


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
def test_a_picture_of_any_8_bit_mode_becomes_grey_or_rgb(mode: str, tmp_path: Path) -> None:
    suffix = ".tif" if mode == "CMYK" else ".png"
    for split in ("train", "test"):
        path = tmp_path / split / "a" / f"0{suffix}"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.shape.channels == (1 if mode in ("1", "LA") else 3)
    assert bool((data.train.images == 255).all())


@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 5, 6)])
def test_an_npz_is_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    sets = random_sets(3, *shape)
    path = files.write_npz(tmp_path / "mine.npz", sets)
    data = load_dataset(f"arrays:{path}")
    assert_read(data, sets)
    assert data.class_names == ("0", "1", "2")


def test_other_sets_have_the_statistics_of_their_training_images(tmp_path: Path) -> None:
    sets = random_sets(3, 3, 5, 6)
    data = load_dataset(f"arrays:{files.write_npz(tmp_path / 'mine.npz', sets)}")
    inputs = data.to_input(data.train.images, torch.float64)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3).double())
    torch.testing.assert_close(inputs.std((0, 2, 3), correction=0), torch.ones(3).double())


def test_the_first_layout_that_is_there_is_read(tmp_path: Path) -> None:
    binary, python = LAYOUTS["CIFAR-10 binary"], LAYOUTS["CIFAR-10 Python"]
    sets = binary.random_sets()
    binary.write(tmp_path, sets)
    python.write(tmp_path, Sets(sets.test, sets.test))
    assert_read(load_dataset("cifar10", tmp_path), sets)
