"""A share of the training images that judges in the place of the test images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cmidd.cli import main
from cmidd.cli.data import load, load_for
from cmidd.datasets import load_dataset
from cmidd.evaluate import evaluate_set
from cmidd.options.commands import DataOptions, SetDataOptions
from cmidd.storage.tensor_file import record_of
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of
from tests.support.tiny import tiny_dataset

MLP = "mlp:width=4"
SHORT = ["--device=cpu", "--batch_real=2", "--iterations=1", "--ipc=1", f"--network={MLP}"]


def test_a_share_of_each_class_is_held_out_of_the_training_images() -> None:
    whole = load_dataset("digits")
    part = whole.holding_out(0.2)
    for c, count in enumerate(whole.train.offsets.diff().tolist()):
        assert len(part.test.of_class(c)) == count - round(0.8 * count)
        both = torch.cat([part.train.of_class(c), part.test.of_class(c)]).flatten(1)
        assert sorted(both.tolist()) == sorted(whole.train.of_class(c).flatten(1).tolist())
    assert torch.equal(part.test.images, whole.holding_out(0.2).test.images)
    assert not torch.equal(
        part.test.of_class(0), whole.train.of_class(0)[-len(part.test.of_class(0)) :]
    )
    assert (part.mean, part.shape, part.judges) == (whole.mean, whole.shape, "held-out images")


def test_a_larger_share_holds_a_smaller_one() -> None:
    small, large = (tiny_dataset().holding_out(share) for share in (0.3, 0.5))
    images = [[image.tolist() for image in each.test.images] for each in (small, large)]
    assert len(images[0]) < len(images[1])
    assert all(image in images[1] for image in images[0])
    small.check_unseen(large.describe(), "bank")
    with pytest.raises(ValueError, match=r"bank: expected one made with held_out 0\.5 or more"):
        large.check_unseen(small.describe(), "bank")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.01, 0.99, float("nan")])
def test_there_are_images_on_either_side(share: float) -> None:
    with pytest.raises(ValueError, match="held_out: "):
        tiny_dataset().holding_out(share)


def test_images_are_whitened_by_those_that_are_not_held_out() -> None:
    found = load(DataOptions(held_out=0.5, zca=True)).whitening
    expected = load_dataset("digits").holding_out(0.5).whitened().whitening
    assert found is not None
    assert expected is not None
    assert torch.equal(found.matrix, expected.matrix)


@pytest.fixture
def runs(elsewhere: Path) -> Path:
    """A run that holds images out, and one that does not."""
    main(["distill", "dm", "--out=part", "--held_out=0.2", *SHORT])
    main(["distill", "dm", "--out=whole", *SHORT])
    return elsewhere


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """What the file says was held out, and what the command says."""
    capsys.readouterr()
    main(["evaluate", *words, "--epochs=1", "--repeats=1", "--device=cpu", "--out=e.json"])
    found = json.loads(Path("e.json").read_text())["held_out"]
    Path("e.json").unlink()
    return found, capsys.readouterr().out


def test_a_set_is_judged_as_it_was_made(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record_of(Path("part/result.safetensors"))["held_out"] == 0.2
    assert "held_out" not in record_of(Path("whole/result.safetensors"))
    for words, expected, judges in (
        (["part"], 0.2, "of 287 held-out images right"),
        (["part", "--held_out=0.2"], 0.2, "of 287 held-out images right"),
        (["part", "--held_out=0"], None, "of 359 test images right"),
        (["whole"], None, "of 359 test images right"),
        (["part", "--held_out=0.1"], 0.1, "of 145 held-out images right"),
        (["part", "whole", "--held_out=0"], None, "of 359 test images right"),
        (["--random_real=1", "--networks", MLP, "--held_out=0.2"], 0.2, "of 287 held-out"),
    ):
        found, said = evaluated(capsys, *words)
        assert found == expected
        assert judges in said
    assert len(load_for([Path("part")], SetDataOptions()).train) == 1438 - 287


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["whole", "--held_out=0.2"], "--held_out: whole was made from --dataset digits, so that "
         "the images held out now are among those it was made from; distil with --held_out 0.2 "
         "first"),
        (["part", "whole"], "--sets: part was made from --dataset digits --held_out 0.2, whole "
         "from --dataset digits; give a command for each"),
        (["part", "--held_out=1"], "--held_out: expected a share of the training images, such as "
         "0.2, got 1"),
        (["part", "--held_out=-1"], "--held_out: expected at least 0, got -1.0"),
    ],
)  # fmt: skip
def test_what_would_judge_wrongly_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in error_of(["evaluate", *words], capsys)


def test_results_by_held_out_images_and_by_test_images_are_not_mixed(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--epochs=1", "--repeats=1", "--device=cpu"]
    main(["evaluate", "part", *short, "--out=held.json"])
    main(["evaluate", "part", *short, "--out=test.json", "--held_out=0"])
    said = error_of(["evaluate", "part", *short, "--out=test.json", "--resume"], capsys)
    assert "held_out: None there, 0.2 now" in said
    report = ["report", "part", "--out=page.html", "--evaluations"]
    said = error_of([*report, "held.json", "test.json"], capsys)
    assert "held.json is of 20% of the real training images, held out, test.json of" in said
    main([*report, "held.json"])
    assert "Accuracy on 20% of the real training images, held out" in Path("page.html").read_text()


def test_a_bank_of_the_rest_serves_runs_on_all(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--networks=1", "--epochs=1", "--device=cpu", f"--network={MLP}", "--out=bank"]
    main(["pretrain", "--held_out=0.2", *words])
    assert "of held-out images right" in capsys.readouterr().out
    two = ["--ipc=2", "--bank=bank", "--cmi_weight=1", *SHORT[:3], SHORT[-1]]
    main(["distill", "dm", "--out=whole", *two])
    main(["distill", "dm", "--out=part", "--held_out=0.2", *two])
    said = error_of(["pretrain", "--networks=2", *words[1:], "--resume"], capsys)
    assert "held_out: 0.2 there, None now" in said


def test_what_has_seen_the_held_out_images_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--epochs=1", "--device=cpu", f"--network={MLP}"]
    main(["pretrain", "--networks=1", "--out=bank", *short])
    main(["experts", "--experts=1", "--out=experts", *short])
    wanted = "expected one made with held_out 0.2 or more, because the images held out now judge"
    common = ["--device=cpu", "--iterations=1", "--held_out=0.2", "--out=new"]
    dm = ["dm", "--batch_real=2", f"--network={MLP}"]
    for words, which in (
        ([*dm, "--ipc=2", "--bank=bank", "--cmi_weight=1"], "--bank: bank"),
        ([*dm, "--ipc=1", "--init=file:whole/result.safetensors"], "--init: whole/result"),
        ([*dm, "--ipc=1", "--init=file:whole/checkpoint.safetensors"], "--init: whole/checkpoint"),
        (["mtt", "--ipc=1", "--experts=experts", "--expert_epochs=1", "--max_start_epoch=1"],
         "--experts: experts"),
    ):  # fmt: skip
        said = error_of(["distill", *words, *common], capsys)
        assert which in said
        assert f"{wanted}, got one made with 0" in said
    whole = SyntheticSet.load(Path("whole/result.safetensors"))
    with pytest.raises(ValueError, match="synthetic_set: expected one made with held_out"):
        evaluate_set(whole, load_dataset("digits").holding_out(0.2), MLP, device="cpu")
