"""cmidd relabel, and evaluate by soft labels and by teachers."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cmidd.cli import main
from cmidd.datasets import load_dataset
from cmidd.evaluation_file import results_of
from cmidd.first_images import first_images
from cmidd.pretrained.bank import Bank
from cmidd.storage.output import in_words
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of

SET, BANK, LABELS = "set.safetensors", "runs/bank.safetensors", "runs/labels.safetensors"
FILE = Path("runs/evaluation.json")
NETWORK = "mlp:width=4"
RELABEL = ["relabel", SET, "--teacher", BANK, "--epochs=3", "--batch_size=8", "--device=cpu"]
EVALUATE = ["evaluate", SET, f"--networks={NETWORK}", "--repeats=2", "--device=cpu"]


@pytest.fixture(scope="module")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of digits, and two teachers."""
    root = tmp_path_factory.mktemp("relabel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = load_dataset("digits")
        SyntheticSet.of(data, *first_images(data, 2, "real", 5)).save(SET)
        main(["pretrain", f"--network={NETWORK}", "--networks=2", "--epochs=1", "--device=cpu"])
        main(RELABEL)
    return root


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    FILE.unlink(missing_ok=True)


def results() -> dict[str, dict[str, Any]]:
    return {result["set"]: result for result in json.loads(FILE.read_text())["results"]}


def test_relabel_evaluate_and_report(capsys: pytest.CaptureFixture[str]) -> None:
    main([*RELABEL, "--out=again", "--seed=3"])
    said = capsys.readouterr().out
    size = Path("again").stat().st_size
    told = f"augmentation all:zoom and CutMix; again takes {in_words(size)} ("
    assert f"3 epochs of batches of 8, {told}" in said
    hint = shlex.split(said.rpartition("try it: cmidd ")[2])
    assert hint == ["evaluate", "--device=cpu", "--sets", SET, "--labels=again"]
    main([*hint, *EVALUATE[2:4]])
    by_labels = f"{SET}, soft labels of again"
    said = capsys.readouterr().out
    assert f"{by_labels}: 3 epochs of batches of 8 by AdamW" in said
    assert "soft labels of again (KL at temperature 20)" in said

    main([*EVALUATE, "--epochs=2", "--resume"])
    in_loop = f"{SET}, logits of {BANK}"
    main([*EVALUATE, "--teacher", BANK, "--epochs=2", "--soft_loss=mse", "--ce_weight=0.1",
          "--resume"])  # fmt: skip
    found = results()
    assert [*found] == [by_labels, SET, in_loop]
    assert found[by_labels]["taught_by"]["about"] == "soft labels of again"
    assert "taught_by" not in found[SET]
    pixels = 20 * 64
    assert found[SET]["bytes"] == {"images": pixels, "labels": 20}
    assert found[by_labels]["bytes"] == {"images": pixels, "labels": size}
    states = [network.state_dict() for network in Bank.load(BANK)]
    teachers = sum(tensor.nbytes for state in states for tensor in state.values())
    assert found[in_loop]["bytes"] == {"images": pixels, "labels": teachers}
    (by_mse,) = found[in_loop]["evaluations"]
    recipe = by_mse["recipe"]
    assert (recipe["soft_loss"], recipe["ce_weight"], recipe["epochs"]) == ("mse", 0.1, 2)
    assert (recipe["optimizer"], recipe["lr"], recipe["schedule"]) == ("adamw", 1e-3, "cosine")
    of_labels = results_of(FILE, SyntheticSet.load(SET))["evaluations"]
    assert of_labels == found[SET]["evaluations"]

    before = FILE.read_bytes()
    main([*EVALUATE, "--labels=again", "--resume"])
    assert json.loads(FILE.read_text())["results"] == json.loads(before)["results"]
    capsys.readouterr()
    main(["report", SET, f"--evaluations={FILE}", "--out=page.html", "--overwrite"])
    page, said = Path("page.html").read_text(), capsys.readouterr().out
    assert f"{by_labels} {in_words(pixels)} and {in_words(size)}; " in page
    assert re.search(
        r"^  2 images per class, a teacher's logits by KL at temperature 20: ", said, re.M
    )
    assert re.search(
        r"^  2 images per class, a teacher's logits by MSE of logits \+ 0.1 ", said, re.M
    )
    assert re.search(r"^  2 images per class: ", said, re.M)


def test_other_labels_are_another_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    main([*RELABEL, "--out=one"])
    main([*EVALUATE, "--labels=one"])
    main([*RELABEL, "--out=two", "--seed=9"])
    Path("two").replace("one")
    said = error_of([*EVALUATE, "--labels=one", "--resume"], capsys)
    assert re.search(
        r"--resume: .* has results of another set.safetensors, soft labels of one", said
    )


def test_labels_decide_on_what_networks_see(capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of([*EVALUATE, f"--labels={LABELS}", "--batch_size=9"], capsys)
    assert f"--batch_size: expected 8, which {LABELS} has labels for, got 9; leave it out" in said
    said = error_of([*EVALUATE, f"--labels={LABELS}", "--epochs=4"], capsys)
    assert f"--epochs: expected at most 3, which {LABELS} has labels for, got 4" in said
    main([*EVALUATE, f"--labels={LABELS}", "--epochs=1", "--optimizer=sgd"])
    (result,) = results().values()
    recipe = result["evaluations"][0]["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["lr"]) == (1, 8, 0.01)


def test_a_teacher_in_the_loop_teaches_all_sets_alike() -> None:
    words = [*EVALUATE, "--teacher", BANK, "--random_real=1", "--all_real", "--epochs=1"]
    main([*words, "--all_real_epochs=1", "--temperature=4", "--temperature_squared"])
    found = results()
    random = "random real images, 1 per class"
    assert [*found] == [f"{name}, logits of {BANK}" for name in (SET, random, "all real images")]
    for result in found.values():
        recipe = result["evaluations"][0]["recipe"]
        assert (recipe["temperature"], recipe["temperature_squared"]) == (4.0, True)


def test_a_dry_run_says_the_size_that_the_file_has(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RELABEL, "--out=nowhere"]
    main([*words, "--dry_run"])
    said = capsys.readouterr().out
    assert re.match(r"about .* a step, .* for 9 steps in 3 epochs; memory \S+B, disk \S+kB\n", said)
    assert not Path("nowhere").exists()
    main(words)
    assert said.split()[-1] == in_words(Path("nowhere").stat().st_size)
    capsys.readouterr()
    main([*RELABEL, "--batch_size=100", "--out=other", "--dry_run"])  # an epoch of one step
    assert re.match(r"about .* a step, .* for 3 steps in 3 epochs", capsys.readouterr().out)
    main([*EVALUATE, f"--labels={LABELS}", "--dry_run"])
    said = capsys.readouterr().out
    assert said.startswith(f"{SET}, soft labels of {LABELS}: 2 x {NETWORK}: about ")
    assert not FILE.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["relabel", SET], "--teacher: expected banks, files that cmidd pretrain makes"),
        (["relabel", SET, "--teacher=no"], "--teacher: expected a file with a bank of networks"),
        (["relabel", "no", "--teacher", BANK], "--set: expected a file with a synthetic set"),
        ([*RELABEL, "--seed=-1"], "--seed: expected "),
        (
            [*RELABEL, "--out=new", "--augmentation=flip", "--zoom=0.5"],
            "--zoom: expected it with the operation zoom, got the augmentation flip",
        ),
        ([*RELABEL, "--cutmix=2"], "--cutmix: expected a probability from 0 to 1, got 2"),
        ([*RELABEL, "--augmentation=melt"], "--augmentation: no operation 'melt'"),
        (RELABEL, f"--out: {LABELS} exists already; add --resume"),
        ([*RELABEL, "--resume", "--seed=5"], "--resume: "),
        ([*EVALUATE, "--labels=no"], "--labels: expected a file with a set of soft labels"),
        (
            [*EVALUATE, f"--labels={BANK}"],
            "--labels: runs/bank.safetensors: expected a set of",
        ),
        ([*EVALUATE, "--temperature=3"], "--temperature: expected labels or a teacher with it"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = error_of(words, capsys)
    assert said in error
    assert error.strip().count("\n") == 0
