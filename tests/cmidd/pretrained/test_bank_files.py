from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cmidd.datasets import Dataset
from cmidd.pretrained import bank as bank_module
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.storage.growing_file import GrowingFile, partial_path
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from tests.support.tiny import (
    CPU,
    quiet,
    tiny_bank,
    tiny_dataset,
    tiny_options,
)

DATASET = tiny_dataset()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    tiny_bank(path, DATASET)
    return path


def stopped_at(
    count: int, path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool = False
) -> list[str]:
    """What `train_bank` says until its write number `count` fails, or until it ends."""
    calls = 0
    said: list[str] = []

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                raise InterruptedError("stopped")
            return write(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "replace", failing(Path.replace))
        patch.setattr(GrowingFile, "put", failing(GrowingFile.put))
        try:
            train_bank(path, DATASET, tiny_options(), CPU, resume=resume, say=said.append)
        except InterruptedError:
            said.append("stopped")
    return said


def test_a_bank_stopped_at_any_write_goes_on_to_the_same_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = 0
    while True:
        stops += 1
        begun = tmp_path / f"stopped at {stops}"
        before = stopped_at(stops, begun, monkeypatch)
        if before[-1] != "stopped":
            break
        assert not begun.exists()
        stopped_at(0, begun, monkeypatch, resume=True)
        assert begun.read_bytes() == path.read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".partial") == []
    # The layout, its name, then for each network `put`, its weights and its mark; the name of all.
    assert stops - 1 == 2 + 3 * 3 + 1


def test_only_the_missing_networks_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "bank"
    stopped_at(2 + 3 + 1, begun, monkeypatch)
    said = stopped_at(0, begun, monkeypatch, resume=True)
    assert said[0] == "1 of 3 networks are there already"
    assert [line.partition(":")[0] for line in said[1:]] == ["network 2 of 3", "network 3 of 3"]


def test_a_complete_bank_is_not_overwritten_and_resume_leaves_it(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=rf"out: {path} exists already; add --resume"):
        train_bank(path, DATASET, tiny_options(), CPU, say=quiet)
    said: list[str] = []
    assert len(train_bank(path, DATASET, tiny_options(), CPU, resume=True, say=said.append)) == 3
    assert said == ["3 of 3 networks are there already"]
    assert path.read_bytes() == before


def test_a_bank_that_was_begun_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(6, tmp_path / "bank", monkeypatch)
    before = partial_path(tmp_path / "bank").read_bytes()
    with pytest.raises(FileExistsError, match=r"out: .*bank.partial exists already; add --resume"):
        train_bank(tmp_path / "bank", DATASET, tiny_options(), CPU, say=quiet)
    assert partial_path(tmp_path / "bank").read_bytes() == before


@pytest.mark.parametrize(
    ("dataset", "changes"),
    [(DATASET, {"epochs": 3}), (DATASET, {"seed": 1}), (tiny_dataset("other"), {})],
)
@pytest.mark.parametrize("complete", [False, True])
def test_resume_with_other_settings_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: Dataset,
    changes: dict[str, Any],
    complete: bool,
) -> None:
    stopped_at(0 if complete else 6, tmp_path / "bank", monkeypatch)
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()
    with pytest.raises(ValueError, match=rf"resume: {file} is a bank with other settings"):
        train_bank(tmp_path / "bank", dataset, tiny_options(**changes), CPU, resume=True, say=quiet)
    assert file.read_bytes() == before


def test_how_many_are_trained_together_is_not_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(6, tmp_path / "bank", monkeypatch)
    options = tiny_options(together=2)
    assert len(train_bank(tmp_path / "bank", DATASET, options, CPU, resume=True, say=quiet)) == 3


def test_something_else_at_the_place_is_refused_and_stays(tmp_path: Path) -> None:
    for file in (tmp_path / "a", partial_path(tmp_path / "b")):
        file.write_bytes(b"mine")
        name = file.with_name(file.name[0])
        with pytest.raises(ValueError, match=rf"resume: {file} is no bank that cmidd began"):
            train_bank(name, DATASET, tiny_options(), CPU, resume=True, say=quiet)
        assert file.read_bytes() == b"mine"


def test_a_bank_that_is_not_complete_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(6, tmp_path / "bank", monkeypatch)
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path}/bank: the bank is not complete; .* --resume"
    ):
        Bank.load(tmp_path / "bank", CPU)
    partial_path(tmp_path / "bank").rename(tmp_path / "renamed")
    with pytest.raises(FileError, match="only 1 of 3 are trained"):
        Bank.load(tmp_path / "renamed", CPU)


def test_a_bank_that_is_not_what_it_says_is_an_error(path: Path, tmp_path: Path) -> None:
    tensors, record = read_tensors(path, bank_module.KIND)
    other = tmp_path / "other"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"networks": 4}, "expected tensors of 4 networks each"),
        ({"network": "convnet:width=5,depth=1"}, "expected networks as its record says"),
        ({"network": "resnet99"}, "expected networks as its record says"),
        ({"network": None}, "expected networks as its record says"),
        ({"shape": [3, 8, 8]}, "expected networks as its record says"),
    ]
    for change, message in changes:
        write_tensors(other, bank_module.KIND, tensors, {**record, **change})
        with pytest.raises(FileError, match=rf"{other}: {message}"):
            Bank.load(other, CPU)
    for name in ("trained", "accuracy", "head.weight"):
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        write_tensors(other, bank_module.KIND, rest, record)
        with pytest.raises(FileError, match=rf"{other}: expected networks as its record says"):
            Bank.load(other, CPU)


def test_a_bank_without_its_record_is_an_error(path: Path, tmp_path: Path) -> None:
    save_file(load_file(path), tmp_path / "plain")
    with pytest.raises(FileError, match="without its record"):
        Bank.load(tmp_path / "plain", CPU)


# A bank of two networks, as the first version wrote it.
FIRST_HEADER = (
    r'{"__metadata__": {"cmidd": "{\"augmentation\": \"none\", \"batch_size\": 5, '
    r"\"dataset\": \"tiny\", \"epochs\": 2, \"format\": 1, \"kind\": \"bank of networks\", "
    r"\"lr\": 0.01, \"mean\": [0.5], \"network\": \"convnet:width=4,depth=1\", \"networks\": 2, "
    r"\"num_classes\": 3, \"seed\": 0, \"shape\": [1, 8, 8], \"std\": [0.25], "
    r'\"weight_decay\": 0.001}"}, '
    '"features.0.weight": {"dtype": "F32", "shape": [2, 4, 1, 3, 3], "data_offsets": [0, 288]}, '
    '"features.0.bias": {"dtype": "F32", "shape": [2, 4], "data_offsets": [288, 320]}, '
    '"features.1.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [320, 352]}, '
    '"features.1.bias": {"dtype": "F32", "shape": [2, 4], "data_offsets": [352, 384]}, '
    '"head.weight": {"dtype": "F32", "shape": [2, 3, 64], "data_offsets": [384, 1920]}, '
    '"head.bias": {"dtype": "F32", "shape": [2, 3], "data_offsets": [1920, 1944]}, '
    '"accuracy": {"dtype": "F32", "shape": [2], "data_offsets": [1944, 1952]}, '
    '"trained": {"dtype": "U8", "shape": [2], "data_offsets": [1952, 1954]}}'
)


def test_a_bank_that_the_first_version_wrote_is_read(tmp_path: Path) -> None:
    text = FIRST_HEADER.encode()
    text += b" " * (-len(text) % 8)
    numbers = torch.arange(1952 // 4, dtype=torch.float32)
    data = numbers.numpy().tobytes() + b"\x01\x01"
    (tmp_path / "bank").write_bytes(len(text).to_bytes(8, "little") + text + data)
    bank = Bank.load(tmp_path / "bank", CPU)
    assert len(bank) == 2
    DATASET.check_made_for(bank.record, "bank")
    assert torch.equal(bank[1].head.bias, numbers[483:486])
    assert torch.equal(bank[0].state_dict()["features.0.weight"], numbers[:36].view(4, 1, 3, 3))
