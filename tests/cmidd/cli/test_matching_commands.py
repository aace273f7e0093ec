"""Experts, MTT, DSA and IID from the command line: whole runs, and settings that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cmidd.cli import main
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import read_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of

NETWORK = "--network=convnet:width=4,depth=1"
EXPERTS = ["experts", NETWORK, "--experts=2", "--epochs=3", "--lr=0.1"]
MTT = [
    *["distill", "mtt", "--experts=runs/experts.safetensors", "--ipc=2", "--iterations=4"],
    *["--student_steps=2", "--expert_epochs=1", "--max_start_epoch=3", "--report_every=1"],
]


@pytest.fixture
def experts(elsewhere: Path) -> Path:
    main(EXPERTS)
    return elsewhere / "runs" / "experts.safetensors"


@pytest.mark.slow
def test_whitened_images_and_soft_labels_from_experts_to_the_report(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*EXPERTS, "--zca"])
    main(["pretrain", "--zca", NETWORK, "--networks=2", "--epochs=1"])
    capsys.readouterr()
    main([*MTT, "--zca", "--soft_labels", "--bank=runs/bank.safetensors", "--cmi_weight=0.1",
          "--batch_syn=15", "--cmi_on=batch"])  # fmt: skip
    said = capsys.readouterr().out
    assert "not given, so as known: " in said
    assert re.search(r"about .* an iteration, .* for 4; memory .*B, disk .*B", said)
    made = SyntheticSet.load(Path("runs/mtt/result.safetensors"))
    assert made.learned_lr is not None
    assert made.learned_lr > 0
    assert made.soft_labels is not None
    assert made.whitening is not None
    log = read_log(Path("runs/mtt/log.jsonl"))
    assert log[-1]["step_size"] == pytest.approx(made.learned_lr)
    assert all(line["cmi"] > 0 for line in log)
    main(["evaluate", "runs/mtt", "--epochs=2", "--repeats=1"])
    said = capsys.readouterr().out
    assert "convnet:width=4,depth=1: " in said  # the network that the set was made for
    assert f"learning rate {made.learned_lr:g} (as the set learned it), soft labels, ZCA" in said
    (result,) = json.loads(Path("runs/evaluation.json").read_text())["results"]
    assert result["evaluations"][0]["recipe"]["lr"] == pytest.approx(made.learned_lr)
    main(["export", "runs/mtt", "--png=png"])
    assert len(list(Path("png").rglob("*.png"))) == 20
    main(["report", "runs/mtt", "--evaluations=runs/evaluation.json",
          "--bank=runs/bank.safetensors"])  # fmt: skip
    page = Path("runs/report.html").read_text()
    step = f"learned step size {made.learned_lr:.3g}, soft labels, whitened (ZCA)"
    assert f"MTT, 2 images per class, CMI weight 0.1, {step}" in page
    assert "Learned step size against iterations" in page


def test_iid_takes_a_bank_and_cmi_the_same_one(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", NETWORK, "--networks=2", "--epochs=1"])
    iid = ["distill", "iid", NETWORK, "--ipc=2", "--iterations=2", "--batch_real=4"]
    text = error_of(iid, capsys)
    assert "cmidd: --centre_bank: expected the file of a bank, made by cmidd pretrain, as " in text
    assert not Path("runs/iid").exists()
    bank = "runs/bank.safetensors"
    main([*iid, f"--centre_bank={bank}", "--dry_run"])
    main([*iid, f"--centre_bank={bank}", f"--bank={bank}", "--cmi_weight=1"])
    said = capsys.readouterr().out
    assert re.search(r"about .* an iteration, .* for 2; memory .*B, disk .*B", said)
    assert "covariance_weight 0.01, centre_weight 0.0005 (not published for digits at 2 im" in said
    made = SyntheticSet.load(Path("runs/iid/result.safetensors"))
    assert made.record["made_with"].keys() == {"bank", "centre_bank"}
    assert read_log(Path("runs/iid/log.jsonl"))[-1]["cmi"] > 0


def test_ncfm_takes_a_bank_and_its_sets_are_judged_by_adamw(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", NETWORK, "--networks=2", "--epochs=1"])
    bank = "runs/bank.safetensors"
    ncfm = ["distill", "ncfm", "--ipc=1", "--factor=2", "--iterations=2", "--batch_real=4",
            "--frequencies=16"]  # fmt: skip
    assert "--matching_bank: expected file of the trained networks" in error_of(ncfm, capsys)
    main([*ncfm, f"--matching_bank={bank}", "--dry_run"])
    main([*ncfm, f"--matching_bank={bank}", f"--bank={bank}", "--cmi_weight=1"])
    said = capsys.readouterr().out
    assert re.search(r"about .* an iteration, .* for 2; memory .*B, disk .*B", said)
    told = "adamw, weight_decay 0.0005 (not published for digits; those of NCFM for CIFAR-10, for"
    assert f"optimizer {told} factor 2, but factor 1 is ours" in said
    made = SyntheticSet.load(Path("runs/ncfm/result.safetensors"))
    assert made.record["made_with"].keys() == {"bank", "matching_bank"}
    assert len(made.seen().images) == 4 * len(made.images) == 40
    main(["evaluate", "runs/ncfm", "--epochs=5", "--repeats=1"])
    told = capsys.readouterr().out
    assert "5 epochs of batches of 128 by AdamW whose learning rate falls 4 times, by 2" in told
    assert "learning rate 0.001 (of the protocol)" in told
    (evaluation,) = json.loads(Path("runs/evaluation.json").read_text())["results"]
    recipe = evaluation["evaluations"][0]["recipe"]
    assert (recipe["optimizer"], recipe["drop_at"]) == ("adamw", [0.2, 0.4, 0.6, 0.8])
    main(["evaluate", "runs/ncfm", "--epochs=5", "--repeats=1", "--optimizer=sgd", "--lr=0.01",
          "--drop_at", "0.5", "--drop_by=10", "--out=sgd.json"])  # fmt: skip
    assert "of batches of 128, augmentation" in capsys.readouterr().out
    main(["report", "runs/ncfm", "--evaluations=runs/evaluation.json"])
    page = Path("runs/report.html").read_text()
    assert "NCFM, 1 image per class" in page
    assert "seen as 4 images each" in page


def test_dsa_runs_with_cmi(elsewhere: Path) -> None:
    main(["pretrain", NETWORK, "--networks=2", "--epochs=1"])
    main(["distill", "dsa", NETWORK, "--ipc=2", "--iterations=2", "--batch_real=4",
          "--inner_epochs=1", "--bank=runs/bank.safetensors", "--cmi_weight=1"])  # fmt: skip
    made = SyntheticSet.load(Path("runs/dsa/result.safetensors"))
    assert made.record["method"] == "dsa"
    assert made.record["config"]["outer_steps"] == 2
    assert [line["cmi"] > 0 for line in read_log(Path("runs/dsa/log.jsonl"))] == [True, True]


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["distill", "dc", NETWORK, "--ipc=1", "--batch_real=2", "--iterations=1000", "--dry_run"])
    assert "for 1,000; memory" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--max_start_epoch=4"],
            "max_start_epoch - 1 + expert_epochs: expected at most 3, the epochs in "
            "runs/experts.safetensors, got 4; lower --max_start_epoch to 3, or train experts of 4 "
            "epochs or more",
        ),
        (["--expert_epochs=2"], "got 4; lower --max_start_epoch to 2, or train experts of 4"),
        (["--expert_epochs=4"], "got 6; train experts of 6 epochs or more"),
        (
            ["--zca"],
            "experts.safetensors: expected images with whitening (zca) as digits has them, got one",
        ),
        (["--dataset=arrays:other.npz"], "experts: runs/experts.safetensors: expected dataset"),
        (["--ipc=1000"], "ipc: class 0 of digits has"),
        (["--step_size=-0.1"], "step_size: expected more than 0, got -0.1"),
        (["--cmi_on=batch"], "bank: expected the file of a bank, as other options of CMI are"),
        (["--lr_labels=0.1"], "lr_labels: expected soft_labels"),
    ],
)
def test_settings_of_mtt_that_cannot_be_are_refused_before_anything_is_written(
    experts: Path, changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10
    images[:, 0] = 255
    arrays = {f"{part}_{name}": array for part in ("train", "test")
              for name, array in (("images", images), ("labels", labels))}  # fmt: skip
    np.savez("other.npz", **arrays)  # type: ignore[arg-type]
    capsys.readouterr()
    assert message in error_of([*MTT, *changes], capsys)
    assert not Path("runs/mtt").exists()


def test_a_learned_step_that_leaves_the_numbers_stops_the_run_and_keeps_what_was_saved(
    experts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--iterations=50", "--lr_step_size=1e30", "--checkpoint_every=1"]
    text = error_of([*MTT, *changes], capsys)
    assert re.search(
        r"iteration \d+: loss .*step_size .*smaller lr_images or lr_step_size or step_size", text
    )
    kept = "runs/mtt/checkpoint.safetensors"
    assert f"--init=file:{kept} starts from the last good images" in text
    tensors, _ = read_tensors(Path(kept), CHECKPOINT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not Path("runs/mtt/result.safetensors").exists()
    log = read_log(Path("runs/mtt/log.jsonl"))
    assert all(torch.tensor(list(line.values())).isfinite().all() for line in log)
    main([*MTT, f"--init=file:{kept}", "--out=again"])
    assert SyntheticSet.load(Path("again/result.safetensors")).images.isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cmi_networks=99"], "--cmi_networks: expected at most the 1 networks of bank, got 99"),
        (
            ["--cmi_layer=heat"],
            "--cmi_layer: expected features, logits or a layer of the networks of bank (such as "
            "head), got heat; did you mean head?",
        ),
    ],
)
def test_what_a_bank_has_not_is_refused_before_an_update_is_tried(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    main(["pretrain", "--networks=1", "--epochs=1", "--device=cpu", "--out=bank", NETWORK])
    capsys.readouterr()
    command = ["distill", "dm", "--ipc=2", "--bank=bank", "--device=cpu", NETWORK]
    with pytest.raises(SystemExit) as stopped:
        main([*command, *words])
    assert stopped.value.code == f"cmidd: {message}"
    assert "updates are tried" not in capsys.readouterr().out
