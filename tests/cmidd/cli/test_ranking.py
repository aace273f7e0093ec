"""cmidd evaluate --ddranking."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.cli import main
from cmidd.datasets import load_dataset
from cmidd.evaluate import evaluate_set
from cmidd.first_images import first_images
from cmidd.robust_scores import label_robust_score
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of

SET = "set.safetensors"
WORDS = ["evaluate", SET, "--networks=mlp:width=4", "--epochs=2", "--repeats=2", "--ddranking",
         "--all_real_epochs=1", "--batch_size=500", "--device=cpu"]  # fmt: skip
FILE = Path("runs/evaluation.json")


@pytest.fixture
def soft_set(elsewhere: Path) -> Path:
    """A set of digits with soft labels."""
    data = load_dataset("digits")
    images, labels = first_images(data, 1, "real", 5)
    soft = 0.9 * torch.eye(10)[labels] + 0.01
    SyntheticSet(images, labels, SyntheticSet.of(data, images, labels).record, soft).save(SET)
    return elsewhere


def test_scores_are_printed_and_kept_and_all_of_it_goes_on(
    soft_set: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(WORDS)
    said = capsys.readouterr().out
    assert re.search(rf"^{SET}, mlp:width=4:\n  its own labels and recipe +\d", said, re.M)
    assert re.search(r"^  LRS +0\.\d{4} \+- 0\.\d{4}\n  ARS +0\.\d{4} \+- ", said, re.M)
    whole = FILE.read_bytes()
    record = json.loads(whole)
    (scores,) = record["ddranking"]["scores"]
    found = scores["accuracies"]
    assert scores["lrs"]["of_networks"] == [
        label_robust_score(*(found[name][k] for name in ("own", "hard", "random", "real")))
        for k in range(2)
    ]
    (result,) = record["results"]
    assert result["evaluations"][0]["accuracies"] == found["own"]
    (real,) = (each for each in record["ddranking"]["compared"] if each["images"] > 10)
    assert (real["set"], real["recipe"]["epochs"]) == ("all real images", 1)
    assert real["accuracies"] == found["real"]

    FILE.unlink()
    calls = 0

    def cut(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise ValueError("no more")
        return evaluate_set(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("cmidd.cli.evaluation.evaluate_set", cut)
        error_of(WORDS, capsys)
    there = json.loads(FILE.read_text())["ddranking"]
    assert (len(there["compared"]), there["scores"]) == (6, [])
    main([*WORDS, "--resume"])
    assert FILE.read_bytes() == whole
    assert capsys.readouterr().out.count("2 of 2 networks are there already") == 8


def test_real_images_that_were_evaluated_before_are_not_trained_on_again(soft_set: Path) -> None:
    words = [word for word in WORDS if word != "--ddranking"]
    main([*words, "--all_real"])
    before = json.loads(FILE.read_text())["results"]
    main([*WORDS, "--resume"])
    record = json.loads(FILE.read_text())
    assert record["results"] == before
    assert all(each["images"] == 10 for each in record["ddranking"]["compared"])
    (scores,) = record["ddranking"]["scores"]
    assert scores["accuracies"]["real"] == before[1]["evaluations"][0]["accuracies"]


def test_a_dry_run_tells_what_the_scores_cost(
    soft_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*WORDS, "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    counts = [re.sub(r": about .*", "", line) for line in lines[:-1]]
    network = "mlp:width=4"
    assert counts == [
        f"{SET}: 2 x {network}",
        f"{SET}, hard labels: 10 x {network}",
        f"10 random real images: 10 x {network}",
        f"{SET}, without augmentation: 2 x {network}",
        f"10 random real images, without augmentation: 10 x {network}",
        f"all real images: 2 x {network}",
    ]
    main([*WORDS, "--all_real", "--dry_run"])  # which has no further training
    assert len(capsys.readouterr().out.splitlines()) == len(lines)
    main([*WORDS, "--dry_run", "--real_accuracy=0.9"])
    assert "all real" not in capsys.readouterr().out
    assert not FILE.exists()


def test_a_set_of_more_images_than_there_are_real_ones_is_an_error(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_dataset("digits")
    labels = torch.zeros(200, dtype=torch.int64)
    SyntheticSet.of(data, torch.zeros(200, 1, 8, 8), labels).save(SET)
    said = error_of([*WORDS, "--real_accuracy=0.9", "--dry_run"], capsys)
    assert said.startswith("cmidd: --ddranking: class 0 of digits has 1")
