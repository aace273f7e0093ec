from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmidd.datasets import DatasetNotFound, load_dataset
from tests.support import dataset_files as files
from tests.support.dataset_files import Payload, random_sets

# --- folders


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n"


# As for users, for whom Pillow only warns of a bomb.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("place", ["train/c000/0000.png", "test/c001/0000.png"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify image file"),
        (b"no image at all", "cannot identify image file"),
        (png_header(5, 5), ""),
        (png_header(9_500, 9_500), "is 9500 x 9500 pixels, more than"),
        (png_header(50_000, 50_000), "2500000000 pixels"),
        (POSTSCRIPT, "cannot identify image file"),
    ],
    ids=["empty", "text", "no pixels", "bomb", "large bomb", "PostScript"],
)
def test_an_image_that_cannot_be_read_is_an_error_that_names_it(
    place: str, content: bytes, message: str, tmp_path: Path
) -> None:
    files.write_tree(tmp_path, random_sets(2, 3, 5, 5))
    path = tmp_path / place
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
        load_dataset(f"folder:{tmp_path}")


def test_an_image_cut_short_is_an_error_that_names_it(tmp_path: Path) -> None:
    files.write_tree(tmp_path, random_sets(2, 3, 64, 64), suffix=".jpg")
    path = next((tmp_path / "test" / "c001").iterdir())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"{path.name}: .*truncated"):
        load_dataset(f"folder:{tmp_path}")


def test_images_of_16_bits_are_an_error_that_names_one(tmp_path: Path) -> None:
    files.write_tree(tmp_path, random_sets(2, 1, 5, 5))
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(tmp_path / "train" / "c000" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: has pixels of mode I;16"):
        load_dataset(f"folder:{tmp_path}")


def test_images_of_two_sizes_without_a_size_are_an_error_that_names_one(tmp_path: Path) -> None:
    files.write_tree(tmp_path, random_sets(2, 3, 5, 5))
    files.save_image(tmp_path / "test" / "c000" / "wide.png", np.zeros((3, 5, 6), np.uint8))
    with pytest.raises(
        ValueError, match=r"wide\.png: is 6 x 5 pixels where others are 5 x 5; give"
    ):
        load_dataset(f"folder:{tmp_path}")


def test_a_class_without_images_is_an_error_that_names_its_folder(tmp_path: Path) -> None:
    files.write_tree(tmp_path, random_sets(2, 3, 5, 5))
    for image in (tmp_path / "train" / "c001").iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"train/c001: has no images"):
        load_dataset(f"folder:{tmp_path}")


def test_test_classes_other_than_the_training_ones_are_an_error_that_names_them(
    tmp_path: Path,
) -> None:
    files.write_tree(tmp_path, random_sets(2, 3, 5, 5))
    (tmp_path / "test" / "c001").rename(tmp_path / "test" / "dog")
    with pytest.raises(ValueError, match=r"test: its class folders must be .* c001, dog"):
        load_dataset(f"folder:{tmp_path}")


def test_a_folder_without_classes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match="train: has no class folders"):
        load_dataset(f"folder:{tmp_path}")


def test_a_folder_that_lacks_a_part_says_where_to_put_it(elsewhere: Path) -> None:
    files.write_tree(Path("pics"), random_sets(2, 3, 5, 5), test="tests")
    with pytest.raises(
        DatasetNotFound,
        match=r"^pics has no test images: put a folder of them for each class into pics/test or "
        r"pics/val$",
    ):
        load_dataset("folder:pics")
    Path("pics/train").rename("pics/val")
    with pytest.raises(DatasetNotFound, match=r"^pics has no training images: .* into pics/train$"):
        load_dataset("folder:pics")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "lists no images"),
        ("val_0.JPEG\tn09999999\t0\t0\t1\t1\n", "line 1 names class 'n09999999'"),
        ("val_0.JPEG", "line 1 names class ''"),
    ],
)
def test_a_broken_table_of_tiny_imagenet_is_an_error(
    table: str, message: str, tmp_path: Path
) -> None:
    folder = files.write_tinyimagenet(tmp_path, random_sets(2, 3, 64, 64))
    (folder / "val" / "val_annotations.txt").write_text(table)
    with pytest.raises(ValueError, match=rf"val_annotations\.txt: {message}"):
        load_dataset("tinyimagenet", tmp_path)


def test_an_image_that_the_table_lists_and_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = files.write_tinyimagenet(tmp_path, random_sets(2, 3, 64, 64))
    (folder / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_1\.JPEG"):
        load_dataset("tinyimagenet", tmp_path)


# --- npz


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_npz_cut_short_is_an_error_that_names_it(share: float, tmp_path: Path) -> None:
    path = files.write_npz(tmp_path / "mine.npz", random_sets(2, 3, 5, 5))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"mine\.npz"):
        load_dataset(f"arrays:{path}")


def test_an_npz_with_a_pickle_in_it_is_an_error_and_not_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "mine.npz", tmp_path / "executed"
    payload = np.array([Payload(os.system, f"touch {proof}")], object)
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(path, **dict.fromkeys(keys, payload))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mine\.npz: Object arrays cannot be loaded"):
        load_dataset(f"arrays:{path}")
    assert not proof.exists()


ARRAYS = {
    "train_images": np.zeros((2, 3, 4, 4), np.uint8),
    "train_labels": np.array([0, 1]),
    "test_images": np.zeros((2, 3, 4, 4), np.uint8),
    "test_labels": np.array([0, 1]),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_images": ARRAYS["train_images"] / 255},
            "train: images must be uint8, got float64; scale to 0",
        ),
        ({"train_labels": np.array([0, 2])}, r"class 1 \(1\) has no training images"),
        (
            {"train_labels": np.array([1, 2])},
            "train: expected labels from 0 on, got 1 as the first; subtract it",
        ),
        ({"train_labels": np.array([-1, 0])}, "train: labels must be from 0 to 0, got -1"),
        ({"train_labels": np.array([], int)}, "train: "),
        ({"test_labels": np.array([0, 2])}, "test: labels must be from 0 to 1, got 2"),
        ({"test_images": ARRAYS["test_images"][..., :3]}, r"\(3, 4, 4\) and \(3, 4, 3\)"),
    ],
)
def test_arrays_that_are_no_dataset_are_an_error(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **{**ARRAYS, **changes})
    with pytest.raises(ValueError, match=rf"mine\.npz.*{message}"):
        load_dataset(f"arrays:{path}")


def test_arrays_that_an_npz_lacks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, train_images=ARRAYS["train_images"], labels=ARRAYS["train_labels"])
    with pytest.raises(
        ValueError,
        match="lacks train_labels, test_images, test_labels; has train_images, labels",
    ):
        load_dataset(f"arrays:{path}")


def test_a_single_array_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.npy"
    np.save(path, ARRAYS["train_images"])
    with pytest.raises(ValueError, match=r"mine\.npy: is one array"):
        load_dataset(f"arrays:{path}")
