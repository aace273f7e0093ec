from __future__ import annotations

import gzip
import os
import pickle
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmidd.datasets import DatasetNotFound, load_dataset
from cmidd.datasets.idx import read_idx
from tests.support.dataset_files import LAYOUTS, Payload, idx_bytes, python2_pickle

DATA_FILE = {
    "CIFAR-10 binary": "cifar-10-batches-bin/data_batch_2.bin",
    "CIFAR-10 Python": "cifar-10-batches-py/data_batch_2",
    "CIFAR-100 binary": "cifar-100-binary/test.bin",
    "CIFAR-100 Python": "cifar-100-python/test",
    "MNIST": "MNIST/raw/t10k-images-idx3-ubyte",
    "MNIST gzip": "mnist/train-labels-idx1-ubyte.gz",
    "SVHN": "svhn/test_32x32.mat",
}


def written(layout: str, root: Path) -> Path:
    """A file of images, or of labels, of a dataset under `root` that is whole."""
    LAYOUTS[layout].write(root, LAYOUTS[layout].random_sets())
    return root / DATA_FILE[layout]


# --- any file


@pytest.mark.parametrize("layout", DATA_FILE)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:0],
        lambda content: content[: len(content) // 2 + 1],
        lambda content: content[:-1],
        lambda content: content[:0] + b"<html>404 Not Found</html>",
        lambda content: bytes(len(content) + 1),
    ],
    ids=["empty", "half", "a byte short", "a web page", "zeros"],
)
def test_a_broken_file_is_an_error_that_names_it(
    layout: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = written(layout, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=path.name):
        load_dataset(LAYOUTS[layout].name, tmp_path)


@pytest.mark.parametrize("layout", DATA_FILE)
def test_a_missing_part_is_an_error_that_names_it(layout: str, tmp_path: Path) -> None:
    path = written(layout, tmp_path)
    path.unlink()
    with pytest.raises(DatasetNotFound, match=path.name):
        load_dataset(LAYOUTS[layout].name, tmp_path)


# --- CIFAR


@pytest.mark.parametrize("layout", ["CIFAR-10 binary", "CIFAR-10 Python"])
def test_a_cifar_label_out_of_range_is_an_error_that_names_the_file(
    layout: str, tmp_path: Path
) -> None:
    path = written(layout, tmp_path)
    if layout == "CIFAR-10 binary":
        path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    else:
        path.write_bytes(python2_pickle(data=np.zeros((1, 3072), np.uint8), labels=[10]))
    with pytest.raises(ValueError, match=f"{path.name}: labels must be from 0 to 9, got 10"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (python2_pickle(labels=[1]), "data"),
        (python2_pickle(data=np.zeros((1, 3072), np.uint8)), "labels must be integers"),
        (python2_pickle(data=np.zeros((1, 9), np.uint8), labels=[1]), "3072"),
        (python2_pickle(data=np.zeros((2, 3072), np.uint8), labels=[1]), "2 images and 1 labels"),
        (pickle.dumps([1, 2]), "expected a pickled dict, got list"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}, 3), "arrays of uint8"),
    ],
)
def test_a_pickle_of_something_else_is_an_error(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = written("CIFAR-10 Python", tmp_path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
        load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_hostile_pickle_is_executed(file: str, protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    folder = written("CIFAR-10 Python", tmp_path).parent
    for run, argument in ((os.system, f"touch {proof}"), (eval, f"open({str(proof)!r}, 'w')")):
        (folder / file).write_bytes(pickle.dumps({"data": Payload(run, argument)}, protocol))
        with pytest.raises(ValueError, match=rf"{file}: the pickle asks for .*\.{run.__name__}"):
            load_dataset("cifar10", tmp_path)
        assert not proof.exists()


def test_numpy_itself_is_not_run_by_a_pickle(tmp_path: Path) -> None:
    folder = written("CIFAR-10 Python", tmp_path).parent
    payload = Payload(np.ndarray, (2**60,), "O")
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": payload}, 3))
    with pytest.raises(ValueError, match="data_batch_1: expected arrays of uint8"):
        load_dataset("cifar10", tmp_path)


def test_a_pickle_cut_short_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = written("CIFAR-10 Python", tmp_path).with_name("data_batch_1")
    content = path.read_bytes()
    for end in (*range(150), *range(len(content) - 100, len(content))):  # around the pixels
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="data_batch_1: "):
            load_dataset("cifar10", tmp_path)


@pytest.mark.parametrize("layout", ["CIFAR-10 binary", "CIFAR-10 Python"])
def test_too_few_class_names_are_an_error(layout: str, tmp_path: Path) -> None:
    folder = written(layout, tmp_path).parent
    names = folder / ("batches.meta.txt" if layout == "CIFAR-10 binary" else "batches.meta")
    names.write_bytes(b"cat dog" if names.suffix == ".txt" else python2_pickle(label_names=["cat"]))
    with pytest.raises(ValueError, match=f"{names.name}: expected 10 class names, got"):
        load_dataset("cifar10", tmp_path)


# --- idx


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(np.zeros(20, np.uint8)), "starts with 0x00000801, expected 0x00000803"),
        (idx_bytes(np.zeros((2, 2, 2), np.uint8)) + b"\0", "goes on after the 8 bytes"),
        (idx_bytes(np.zeros((2, 2, 2), np.uint8))[:-1], "is cut short: .*2 x 2 x 2 = 8 bytes"),
        (struct.pack(">4I", 0x803, *[2**32 - 1] * 3), "is cut short"),
        (b"\0\0\x08\x03\0", "has 5 bytes of a header of 16"),
    ],
)
def test_an_idx_file_that_is_not_what_it_says_is_an_error(
    ending: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"train-images-idx3-ubyte{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(ValueError, match=f"{path.name}: {message}"):
        read_idx(path, axes=3)


@given(st.integers(0, 9), st.binary(max_size=9))
def test_an_idx_file_is_read_whole_or_not_at_all(promised: int, body: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels"
        path.write_bytes(struct.pack(">2I", 0x801, promised) + body)
        if promised == len(body):
            assert read_idx(path, axes=1).tolist() == list(body)
        else:
            with pytest.raises(ValueError, match=str(path)):
                read_idx(path, axes=1)


def test_as_many_labels_as_images_are_needed(tmp_path: Path) -> None:
    path = written("MNIST", tmp_path)
    path.write_bytes(idx_bytes(np.zeros((3, 28, 28), np.uint8)))
    with pytest.raises(ValueError, match=f"{path.name}: labels must be one for each of the 3"):
        load_dataset("mnist", tmp_path)


def test_an_idx_label_out_of_range_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = written("MNIST gzip", tmp_path)
    path.write_bytes(gzip.compress(idx_bytes(np.full(20, 10, np.uint8))))
    with pytest.raises(ValueError, match=f"{path.name}: labels must be from 0 to 9, got 10"):
        load_dataset("mnist", tmp_path)


# --- SVHN


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 1), np.uint8)}, "expected the arrays X and y"),
        ({"X": np.zeros((9, 9, 3, 1), np.uint8), "y": [[1]]}, r"shape \(32, 32, 3, N\), got"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8), "y": [[11]]}, "got 11 at row 0"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1]]}, "each of the 2 images, got 1"),
        ({"X": np.zeros((32, 32, 3, 1)), "y": [[1]]}, "must be uint8"),
    ],
)
def test_a_mat_file_of_something_else_is_an_error(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from scipy.io import savemat

    path = written("SVHN", tmp_path)
    savemat(path, content)
    with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
        load_dataset("svhn", tmp_path)
