"""Signals in the middle of work: what is under way is finished, saved, and goes on to the same."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.interruption import Interrupted
from cmidd.methods.dc import GradientMatching
from cmidd.methods.dm import DM
from cmidd.methods.idc import IDC
from cmidd.methods.idm import IDM
from cmidd.methods.iid import IID
from cmidd.methods.mtt import MTT
from cmidd.methods.ncfm import NCFM
from cmidd.options.cmi import CMIOptions
from cmidd.pretrained.bank import train_bank
from cmidd.pretrained.experts import train_experts
from cmidd.stack import Stack
from cmidd.storage.tensor_file import FileError
from tests.support.signals import signalling
from tests.support.tiny import (
    CPU,
    DM_OPTIONS,
    DSA_OPTIONS,
    IDC_OPTIONS,
    IDM_OPTIONS,
    OPTIONS,
    expert_options,
    iid_options,
    mtt_options,
    ncfm_options,
    quiet,
    tiny_bank,
    tiny_dataset,
    tiny_experts,
    tiny_options,
    tiny_run,
)

SIGNALS = [signal.SIGINT, signal.SIGTERM]


FILES = ("result.safetensors", "log.jsonl")


@pytest.fixture(scope="module")
def methods(
    tmp_path_factory: pytest.TempPathFactory, bank_file: Path
) -> dict[str, tuple[Any, type, int]]:
    """Options of every method, its class and its updates in a run."""
    experts = tmp_path_factory.mktemp("interruption") / "experts"
    tiny_experts(experts, tiny_dataset())
    dsa = replace(DSA_OPTIONS, outer_steps=3, inner_epochs=2)
    return {
        "dm": (DM_OPTIONS, DM, 8),
        "dsa": (dsa, GradientMatching, 8 * 3),
        "mtt": (mtt_options(experts), MTT, 8),
        "idc": (IDC_OPTIONS, IDC, 8 * 2),
        "iid": (iid_options(bank_file), IID, 8),
        "idm": (IDM_OPTIONS, IDM, 8),
        "ncfm": (ncfm_options(bank_file), NCFM, 8),
    }


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", ["dm", "dsa", "mtt", "idc", "idm", "iid", "ncfm"])
def test_a_run_ends_after_the_update_under_way_and_goes_on_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cmi: CMIOptions,
    methods: dict[str, Any],
    name: str,
    number: int,
) -> None:
    options, method_class, updates = methods[name]
    run: Any = (replace(OPTIONS, init="real"), cmi)
    tiny_run(tmp_path / "whole", *run, method=(name, options))
    whole = [(tmp_path / "whole" / file).read_bytes() for file in FILES]
    for at in range(1, updates, 2 if updates < 10 else 5):
        path = tmp_path / f"{at}"
        with monkeypatch.context() as patch:
            loss = signalling(method_class.loss_and_gradient, at, number)
            patch.setattr(method_class, "loss_and_gradient", loss)
            with pytest.raises(
                Interrupted,
                match=f"interrupted after {at} of {updates} updates, which {path} keeps",
            ) as caught:
                tiny_run(path, *run, method=(name, options))
        assert caught.value.number == number
        assert not (path / "result.safetensors").exists()
        said: list[str] = []
        tiny_run(path, *run, method=(name, options), resume=True, say=said.append)
        assert f"going on after {at} of {updates} updates" in said
        assert [(path / file).read_bytes() for file in FILES] == whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_has_no_more_to_do_is_finished_by_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DM, "loss_and_gradient", signalling(DM.loss_and_gradient, 8, signal.SIGTERM))
        with pytest.raises(Interrupted, match="interrupted; what was under way is finished"):
            tiny_run(tmp_path)
    said: list[str] = []
    tiny_run(tmp_path, resume=True, say=said.append)
    assert said == [f"{tmp_path} is finished already"]


def test_a_run_that_was_not_begun_says_that_it_starts_anew(tmp_path: Path) -> None:
    said: list[str] = []
    tiny_run(tmp_path / "new", resume=True, say=said.append)
    assert said == [f"no checkpoint in {tmp_path}/new yet: it starts anew"]


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("at", [1, 4, 5, 9, 14, 24])
def test_networks_of_a_bank_go_on_in_the_step_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int, at: int
) -> None:
    dataset = tiny_dataset()
    changes: dict[str, Any] = {"epochs": 3, "together": together, "augmentation": "crop_flip"}
    tiny_bank(tmp_path / "whole", dataset, **changes)
    bank = tmp_path / "bank"
    with monkeypatch.context() as patch:  # four steps an epoch
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, at, signal.SIGINT))
        with pytest.raises(Interrupted, match=r"interrupted after \d+ of (12 steps of|3) network"):
            tiny_bank(bank, dataset, **changes)
    assert not bank.exists()
    train_bank(bank, dataset, tiny_options(**changes), CPU, resume=True, say=quiet)
    assert bank.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank", "whole"]


@pytest.mark.parametrize("at", [1, 4, 5, 9, 14])
def test_experts_go_on_in_the_step_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    dataset = tiny_dataset()
    changes: dict[str, Any] = {"momentum": 0.9}
    tiny_experts(tmp_path / "whole", dataset, **changes)
    experts = tmp_path / "experts"
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, at, signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"interrupted after \d+ of (8 steps of|3) expert"):
            tiny_experts(experts, dataset, **changes)
    said: list[str] = []
    train_experts(experts, dataset, expert_options(**changes), CPU, resume=True, say=said.append)
    assert experts.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not (tmp_path / "experts.1.training").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_training_is_not_gone_on_with_where_its_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """The epochs that were done are in no file any more."""
    dataset, experts = tiny_dataset(), tmp_path / "experts"
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 6, signal.SIGINT))
        with pytest.raises(Interrupted, match="interrupted after 6 of 8 steps of expert 1 of 3"):
            tiny_experts(experts, dataset)
    (tmp_path / "experts.partial").unlink()
    train_experts(experts, dataset, expert_options(), CPU, resume=resume, say=quiet)
    tiny_experts(tmp_path / "whole", dataset)
    assert experts.read_bytes() == (tmp_path / "whole").read_bytes()


def test_training_that_was_kept_and_is_damaged_says_what_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 3, signal.SIGINT))
        with pytest.raises(Interrupted):
            tiny_bank(tmp_path / "bank", tiny_dataset())
    kept = tmp_path / "bank.1.training"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    with pytest.raises(FileError, match=rf"^{kept}: .*; delete it to train these networks anew$"):
        train_bank(tmp_path / "bank", tiny_dataset(), tiny_options(), CPU, resume=True, say=quiet)


def test_training_of_other_networks_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset()
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 3, signal.SIGINT))
        with pytest.raises(Interrupted):
            tiny_bank(tmp_path / "bank", dataset, seed=1)
    (tmp_path / "bank.partial").unlink()
    tiny_bank(tmp_path / "bank", dataset)
    tiny_bank(tmp_path / "whole", dataset)
    assert (tmp_path / "bank").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_network_whose_training_was_stopped_is_kept_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norm's statistics too, which are no parameters."""
    dataset = tiny_dataset()
    changes: dict[str, Any] = {"network": "convnet:width=4,depth=1,norm=batch", "networks": 1}
    tiny_bank(tmp_path / "whole", dataset, **changes)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 3, signal.SIGINT))
        with pytest.raises(Interrupted, match="interrupted after 3 of 8 steps of network 1 of 1"):
            tiny_bank(tmp_path / "bank", dataset, **changes)
    assert (tmp_path / "bank.1.training").exists()
    torch.manual_seed(3)
    options = tiny_options(**changes)
    train_bank(tmp_path / "bank", dataset, options, CPU, resume=True, say=quiet)
    assert (tmp_path / "bank").read_bytes() == (tmp_path / "whole").read_bytes()
