"""How the fine-tuning of a bank goes on, what it refuses, and its command."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmidd.cli import main
from cmidd.interruption import Interrupted
from cmidd.options.pretrained import BankOptions
from cmidd.pretrained import mcmi
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.pretrained.mcmi import MCMI
from cmidd.stack import Stack
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from cmidd.training import cross_entropy
from cmidd.training_file import KIND, TrainingFile
from tests.support.errors import error_of
from tests.support.parsed import made
from tests.support.signals import signalling
from tests.support.tiny import CPU, NETWORK, mcmi_options, quiet, tiny_bank, tiny_dataset

DATASET = tiny_dataset()


@pytest.mark.parametrize("centroids", ["frozen", "moving"])
@pytest.mark.parametrize("at", [1, 5, 7, 12, 17, 30])
def test_it_goes_on_in_the_step_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bank_file: Path, centroids: str, at: int
) -> None:
    options = mcmi_options(bank_file, centroids=centroids, networks=2)
    train_bank(tmp_path / "whole", DATASET, options, CPU, say=quiet)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:  # four calls for centroids, then four steps an epoch
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, at, signal.SIGINT))
        try:
            train_bank(out, DATASET, options, CPU, say=quiet)
        except Interrupted:
            assert not out.exists()
    train_bank(out, DATASET, options, CPU, resume=True, say=quiet)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def stop_in_step(options: BankOptions, out: Path, patch: pytest.MonkeyPatch) -> Path:
    """The file of training that was stopped in the third step of network 1."""
    with patch.context() as within:
        within.setattr(Stack, "__call__", signalling(Stack.__call__, 7, signal.SIGINT))
        with pytest.raises(Interrupted, match="interrupted after 3 of 8 steps of network 1 of 3"):
            train_bank(out, DATASET, options, CPU, say=quiet)
    return out.with_name(f"{out.name}.1.training")


def test_centroids_are_kept_with_training_that_is_stopped(
    bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = stop_in_step(mcmi_options(bank_file, centroids="moving"), tmp_path / "out", monkeypatch)
    tensors, _ = read_tensors(kept, KIND)
    assert tensors["objective's centroids"].sum(1).tolist() == pytest.approx([1, 1, 1])
    options = mcmi_options(bank_file, centroids="moving")
    monkeypatch.setattr(mcmi, "train_centroids", None)  # they are not measured again
    said: list[str] = []
    with pytest.raises(TypeError, match="NoneType"):  # those of network 2 are
        train_bank(tmp_path / "out", DATASET, options, CPU, resume=True, say=said.append)
    assert said[:1] == ["network 1 of 3: going on in epoch 1"]
    assert said[1].startswith("network 1 of 3: ")


@pytest.mark.parametrize("changes", [{"mcmi_weight": -0.3}, {"centroids": "moving"}])
def test_training_by_another_objective_is_not_gone_on_with(
    bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    out, other = tmp_path / "out", mcmi_options(bank_file, **changes)
    stop_in_step(mcmi_options(bank_file), out, monkeypatch)
    with pytest.raises(ValueError, match=r"resume: .* is a bank with other settings"):
        train_bank(out, DATASET, other, CPU, resume=True, say=quiet)
    (tmp_path / "out.partial").unlink()
    train_bank(out, DATASET, other, CPU, say=quiet)
    train_bank(tmp_path / "whole", DATASET, other, CPU, say=quiet)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_training_that_was_kept_and_lacks_centroids_says_what_to_delete(
    bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = mcmi_options(bank_file)
    kept = stop_in_step(options, tmp_path / "out", monkeypatch)
    tensors, record = read_tensors(kept, KIND)
    del tensors["objective's centroids"]
    write_tensors(kept, KIND, tensors, record)
    with pytest.raises(FileError, match=rf"^{kept}: .*; delete it to train these networks anew$"):
        train_bank(tmp_path / "out", DATASET, options, CPU, resume=True, say=quiet)


def test_a_network_that_was_not_judged_is_not_there(
    bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, out = mcmi_options(bank_file, networks=2), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(MCMI, "_judged", None)
        with pytest.raises(TypeError, match="NoneType"):
            train_bank(out, DATASET, options, CPU, say=quiet)
    said: list[str] = []
    train_bank(out, DATASET, options, CPU, resume=True, say=said.append)
    assert [words.partition(":")[0] for words in said] == ["network 1 of 2", "network 2 of 2"]
    assert all(", CMI " in words for words in said)


def test_training_that_a_kill_left_behind_goes_when_its_networks_are_there(
    bank_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, out = mcmi_options(bank_file), tmp_path / "out"
    kept = stop_in_step(options, out, monkeypatch)
    with monkeypatch.context() as patch:  # after the network was put into the file
        patch.setattr(TrainingFile, "discard", None)
        with pytest.raises(TypeError, match="NoneType"):
            train_bank(out, DATASET, options, CPU, resume=True, say=quiet)
    assert kept.exists()
    said: list[str] = []
    train_bank(out, DATASET, options, CPU, resume=True, say=said.append)
    assert said[0] == "1 of 3 networks are there already"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_more_networks_are_added_where_the_source_has_more(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    tiny_bank(source, DATASET, networks=1)
    train_bank(out, DATASET, mcmi_options(source), CPU, say=quiet)
    source.unlink()
    tiny_bank(source, DATASET, networks=2)
    assert len(train_bank(out, DATASET, mcmi_options(source), CPU, resume=True, say=quiet)) == 2
    train_bank(tmp_path / "whole", DATASET, mcmi_options(source), CPU, say=quiet)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_resume_with_another_source_is_refused(bank_file: Path, tmp_path: Path) -> None:
    train_bank(tmp_path / "out", DATASET, mcmi_options(bank_file), CPU, say=quiet)
    tiny_bank(tmp_path / "other", DATASET, seed=1)
    with pytest.raises(ValueError, match=r"resume: .* is a bank with other settings \(source: "):
        train_bank(
            tmp_path / "out", DATASET, mcmi_options(tmp_path / "other"), CPU, resume=True, say=quiet
        )


def test_another_source_than_one_of_the_data_is_refused_before_anything_is_written(
    bank_file: Path, tmp_path: Path
) -> None:
    options, out = mcmi_options(bank_file), tmp_path / "out"
    for dataset, message in (
        (
            tiny_dataset("other"),
            rf"^from_bank: {bank_file}: expected dataset other as other has it",
        ),
        (DATASET.holding_out(0.5), rf"^from_bank: {bank_file}: .* made with held_out 0.5 or more"),
        (DATASET.whitened(), rf"^from_bank: {bank_file}: expected images with whitening"),
    ):
        with pytest.raises(ValueError, match=message):
            train_bank(out, dataset, options, CPU, say=quiet)
    with pytest.raises(ValueError, match=r"^networks: expected at most 3, .* from_bank has, got 4"):
        train_bank(out, DATASET, mcmi_options(bank_file, networks=4), CPU, say=quiet)
    with pytest.raises(ValueError, match=r"^objective: expected none beside mcmi of the options"):
        train_bank(out, DATASET, options, CPU, objective=lambda *x: cross_entropy(*x), say=quiet)
    with pytest.raises(FileNotFoundError, match="none: expected a file with a bank of networks"):
        train_bank(out, DATASET, mcmi_options(tmp_path / "none"), CPU, say=quiet)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_nan_are_not_kept(bank_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"network 1: .* lower lr, or .* mcmi_weight"):
        train_bank(tmp_path / "out", DATASET, mcmi_options(bank_file, lr=1e30), CPU, say=quiet)
    assert not (tmp_path / "out").exists()


def test_what_is_not_given_is_as_published() -> None:
    found = BankOptions(objective="mcmi", from_bank=Path("bank"))
    assert (found.epochs, found.lr, found.weight_decay, found.batch_size) == (20, 0.05, 5e-4, 64)
    assert (found.mcmi_weight, found.centroids, found.centroid_decay) == (-0.15, "frozen", None)
    recipe = found.recipe()
    assert (recipe.momentum, recipe.schedule, recipe.lr_in(10)) == (0.9, "cosine", 0.025)
    moving = BankOptions(objective="mcmi", from_bank=Path("bank"), centroids="moving")
    assert moving.decay == 0.9999
    assert (moving.as_record()["centroid_decay"], found.decay) == (0.9999, None)
    replace(moving, centroids="frozen").check()  # what was not given does not stay behind
    assert replace(moving, centroid_decay=0.0).decay == 0.0
    assert BankOptions(objective="mcmi", epochs=3).epochs == 3


def test_a_plain_bank_knows_nothing_of_it() -> None:
    assert not {"objective", "mcmi_weight", "schedule", "source"} & BankOptions().as_record().keys()
    BankOptions().check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"from_bank": None}, "from_bank: expected a bank whose networks mcmi fine-tunes; "),
        ({"objective": "cross_entropy"}, "from_bank: expected objective mcmi with it; give "),
        ({"network": NETWORK}, "network: expected that of from_bank with objective mcmi; leave "),
        ({"cutmix": 0.5}, "cutmix: expected 0 with objective mcmi, by which an image has one "),
        ({"together": 2}, "together: expected 1 with objective mcmi, .* network's own, got 2"),
        ({"drop_at": (0.5,)}, "drop_at: expected it with schedule drops, got schedule cosine"),
        ({"centroid_decay": 0.5}, "centroid_decay: expected moving centroids with it; give "),
        (
            {"centroids": "moving", "centroid_decay": 1.5},
            "centroid_decay: expected a share from 0 to 1, got 1.5",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"objective": "mcmi", "from_bank": Path("bank"), **changes}
    with pytest.raises(ValueError, match=f"^{message}"):
        BankOptions(**options).check()


@pytest.mark.parametrize("name", ["mcmi_weight", "centroids", "centroid_decay"])
def test_options_of_mcmi_alone_are_refused_without_it(name: str) -> None:
    value: Any = "frozen" if name == "centroids" else 0.5
    with pytest.raises(ValueError, match=f"^{name}: expected objective mcmi with it; give "):
        BankOptions(**{name: value}).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mcmi_weight": float("nan")},
            r"mcmi_weight: .* from -1e\+30 to 1e\+30, got nan",
        ),
        ({"mcmi_weight": float("-inf")}, r"mcmi_weight: expected .* to 1e\+30, got -inf"),
        ({"mcmi_weight": 1.1e30}, r"mcmi_weight: expected .* to 1e\+30, got 1.1e\+30"),
        ({"networks": None}, "networks: expected a whole number from 1 on, got None"),
        ({"lr": None}, "lr: expected more than 0, got None"),
        ({"schedule": None}, "schedule: expected drops or .*, got None"),
        ({"centroids": "fixed"}, "centroids: expected frozen or moving, got 'fixed'"),
        ({"centroid_decay": -0.1}, "centroid_decay: expected at least 0, got -0.1"),
        ({"objective": "cmi"}, "objective: expected cross_entropy or mcmi, got 'cmi'"),
        ({"networks": 0}, "networks: expected at least 1, got 0"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        BankOptions(**{"objective": "mcmi", **changes})


@pytest.mark.parametrize(("weight", "kind"), [("-0.1", "str"), (True, "bool"), ([], "list")])
def test_a_weight_that_is_no_number_is_refused(weight: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"^mcmi_weight: expected a number, got {kind}$"):
        BankOptions(objective="mcmi", mcmi_weight=weight)


def test_the_command_fine_tunes_and_says_what_became_of_it(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--epochs=1", "--device=cpu"]
    main(["pretrain", f"--network={NETWORK}", "--networks=2", "--out=bank", *short])
    tune = ["pretrain", "--objective=mcmi", "--from_bank=bank", "--out=tuned", *short]
    capsys.readouterr()
    main([*tune, "--dry_run"])
    assert capsys.readouterr().out.startswith(f"2 x {NETWORK}: about ")
    assert not Path("tuned").exists()
    main(tune)
    said = capsys.readouterr().out
    line = r"network 2 of 2: .*% of test images right, CMI \S+ \(before: .*%, CMI \S+\)\n"
    assert re.search(line, said)
    assert said.endswith("the bank: tuned\n")
    command = Bank.load("tuned", CPU).record["command"]
    assert made(command.split()[1:]) == made(tune)
    assert "--lr" not in command  # as published, like all that was not given
    Path("bank").rename("moved")
    message = "--from_bank: expected a file with a bank of networks, found none at bank"
    assert message in error_of([*tune, "--resume"], capsys)
    message = "--mcmi_weight: expected objective mcmi with it"
    assert message in error_of(["pretrain", "--mcmi_weight=1"], capsys)
