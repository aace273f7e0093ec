from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from cmidd import synthetic
from cmidd.pretrained.bank import Bank
from cmidd.storage.output import write_text
from cmidd.storage.tensor_file import (
    FORMAT,
    FileError,
    metadata,
    read_tensors,
    record_of,
    write_tensors,
)
from cmidd.synthetic import SyntheticSet

KIND = "thing"
TENSORS = {
    "float32": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "int64": torch.tensor([1, -(2**60)]),
    "uint8": torch.tensor([[255]], dtype=torch.uint8),
    "bfloat16": torch.tensor([0.5], dtype=torch.bfloat16),
    "scalar": torch.tensor(2.0),
    "empty": torch.zeros(0, 4),
}
RECORD = {"name": "Käfer", "numbers": [1, 2.5e-300], "nothing": None, "inner": {"a": "b"}}
CONTENT = save(TENSORS, metadata=metadata(KIND, RECORD))
HEADER = 8 + int.from_bytes(CONTENT[:8], "little")


class Payload:
    """What a pickle does when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def write_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def write_torch_file(path: Path, payload: Payload) -> None:
    torch.save({"images": torch.zeros(2), "payload": payload}, path)


def write_old_torch_file(path: Path, payload: Payload) -> None:
    torch.save({"payload": payload}, path, _use_new_zipfile_serialization=False)


def read_thing(path: Path) -> Any:
    return read_tensors(path, KIND)


def read_bank(path: Path) -> Bank:
    return Bank.load(path, torch.device("cpu"))


READERS = [read_thing, SyntheticSet.load, read_bank]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def test_tensors_and_record_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "file"
    write_tensors(path, KIND, TENSORS, RECORD)
    tensors, record = read_tensors(path, KIND)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert record == {**RECORD, "kind": KIND, "format": FORMAT}


def test_tensors_that_are_not_contiguous_or_have_a_gradient_are_written(tmp_path: Path) -> None:
    tensors = {"turned": torch.arange(6.0).view(2, 3).T, "leaf": torch.ones(2, requires_grad=True)}
    write_tensors(tmp_path / "file", KIND, tensors, {})
    found, _ = read_tensors(tmp_path / "file", KIND)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    turned = dict(reversed(RECORD.items()))
    write_tensors(tmp_path / "a", KIND, TENSORS, RECORD)
    write_tensors(tmp_path / "b", KIND, TENSORS, turned)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "replace"), (Path, "open")])
def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[Any, str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("the disk is full")

    path = tmp_path / "file"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(*failing, fail)
        with pytest.raises(OSError, match="the disk is full"):
            write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "newer")
    assert path.read_text() == "newer"


def test_what_an_interrupted_write_left_does_not_disturb(tmp_path: Path) -> None:
    (tmp_path / ".file.partial").write_bytes(b"half of something much longer than the new text")
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_file_is_an_error_that_names_it(
    tmp_path: Path, reader: Callable[[Path], object]
) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"{path}\S*: expected a file with a"):
            reader(path)


@given(length=st.integers(0, len(CONTENT) - 1))
def test_a_truncated_file_is_an_error_that_names_it(folder: Path, length: int) -> None:
    path = folder / "truncated"
    path.write_bytes(CONTENT[:length])
    with pytest.raises(FileError, match=rf"{path}: expected a safetensors file with a {KIND}"):
        read_tensors(path, KIND)
    assert path.read_bytes() == CONTENT[:length]


@given(extra=st.binary(min_size=1, max_size=20))
def test_a_file_with_something_after_its_end_is_an_error(folder: Path, extra: bytes) -> None:
    path = folder / "long"
    path.write_bytes(CONTENT + extra)
    with pytest.raises(FileError, match=f"{path}"):
        read_tensors(path, KIND)


@settings(max_examples=300)
@given(position=st.integers(0, HEADER - 1), byte=st.integers(0, 255))
def test_a_damaged_header_is_an_error_or_harmless(folder: Path, position: int, byte: int) -> None:
    path = folder / "damaged"
    path.write_bytes(CONTENT[:position] + bytes([byte]) + CONTENT[position + 1 :])
    try:
        tensors, _ = read_tensors(path, KIND)
    except FileError:
        return
    assert len(tensors) == len(TENSORS)


@pytest.mark.parametrize("reader", READERS)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_an_error_that_names_the_file(
    folder: Path, reader: Callable[[Path], object], content: bytes
) -> None:
    path = folder / "any"
    path.write_bytes(content)
    with pytest.raises(FileError, match=f"{path}"):
        reader(path)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(FileError, match="it is empty"):
        read_tensors(path, KIND)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", [write_pickle, write_torch_file, write_old_torch_file])
def test_a_pickle_is_an_error_and_is_not_executed(
    tmp_path: Path, writer: Callable[[Path, Payload], None], reader: Callable[[Path], object]
) -> None:
    path, marker = tmp_path / "hostile", tmp_path / "executed"
    writer(path, Payload(marker))
    before = path.read_bytes()
    with pytest.raises(FileError, match=rf"{path}.*looks like a pickle"):
        reader(path)
    assert not marker.exists()
    assert path.read_bytes() == before


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "of_file",
    [
        None,
        {"other": "x"},
        {"cmidd": "no json"},
        {"cmidd": "[1, 2]"},
        {"cmidd": "null"},
        {"cmidd": '{"format": 1}'},
    ],
)
def test_a_file_of_another_program_is_an_error(
    tmp_path: Path, of_file: dict[str, str] | None, reader: Callable[[Path], object]
) -> None:
    path = tmp_path / "foreign"
    save_file({"images": torch.zeros(2)}, path, metadata=of_file)
    with pytest.raises(FileError, match=rf"{path}: expected a .* written by cmidd"):
        reader(path)


@pytest.mark.parametrize("reader", [SyntheticSet.load, read_bank])
def test_a_file_of_another_kind_is_an_error(
    tmp_path: Path, reader: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    write_tensors(path, KIND, TENSORS, {})
    with pytest.raises(FileError, match=rf"{path}: expected a .*, got a {KIND}"):
        reader(path)


def test_a_file_of_a_later_format_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "later"
    record = json.dumps({"kind": KIND, "format": FORMAT + 1})
    save_file({"images": torch.zeros(2)}, path, metadata={"cmidd": record})
    with pytest.raises(FileError, match=f"{path}: expected format {FORMAT}, got {FORMAT + 1}"):
        read_tensors(path, KIND)


GOOD = {"images": torch.zeros(4, 1, 8, 8), "labels": torch.tensor([0, 0, 1, 1])}
GOOD_RECORD = {
    "class_names": ["a", "b"],
    "dataset": "tiny",
    "mean": [0.5],
    "num_classes": 2,
    "shape": [1, 8, 8],
    "std": [0.5],
}
BAD: list[tuple[str, dict[str, Tensor], dict[str, Any]]] = [
    ("lacks .'std'", {}, {"std": ...}),
    ("expected N float32 images", {"images": torch.zeros(4, 1, 8)}, {}),
    ("expected N float32 images", {"images": torch.zeros(4, 1, 8, 9)}, {}),
    ("expected N float32 images", {"images": torch.zeros(3, 1, 8, 8)}, {}),
    ("expected N float32 images", {"images": torch.zeros(4, 1, 8, 8).double()}, {}),
    ("expected N float32 images", {"labels": torch.zeros(4)}, {}),
    ("expected N float32 images", {"labels": torch.zeros(4, 2).long()}, {}),
    ("expected N float32 images", {}, {"shape": 8}),
    ("from 0 to 1, got 2 at row 3", {"labels": torch.tensor([0, 0, 1, 2])}, {}),
    ("from 0 to 1, got -1 at row 0", {"labels": torch.tensor([-1, 0, 1, 1])}, {}),
    ("", {}, {"num_classes": "two"}),
    ("NaN or Inf", {"images": torch.full((4, 1, 8, 8), float("nan"))}, {}),
    ("NaN or Inf", {"images": torch.full((4, 1, 8, 8), float("-inf"))}, {}),
]


@pytest.mark.parametrize(("message", "tensors", "record"), BAD)
def test_a_synthetic_set_that_cannot_be_used_is_an_error(
    tmp_path: Path, message: str, tensors: dict[str, Tensor], record: dict[str, Any]
) -> None:
    path = tmp_path / "set"
    changed = {k: v for k, v in {**GOOD_RECORD, **record}.items() if v is not ...}
    write_tensors(path, synthetic.KIND, {**GOOD, **tensors}, changed)
    with pytest.raises(FileError, match=rf"{path}: .*{message}"):
        SyntheticSet.load(path)


@pytest.mark.parametrize("name", GOOD)
def test_a_synthetic_set_without_one_of_its_tensors_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "set"
    rest = {other: tensor for other, tensor in GOOD.items() if other != name}
    write_tensors(path, synthetic.KIND, rest, GOOD_RECORD)
    with pytest.raises(FileError, match=rf"{path}: expected N float32 images"):
        SyntheticSet.load(path)


def test_metadata_of_lists_in_lists_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file(TENSORS, path, {"cmidd": "[" * 10**5})
    assert record_of(path) == {}
    with pytest.raises(FileError, match=r"^.*expected a thing written by cmidd"):
        read_tensors(path, KIND)
