"""Sets that commands are given: where their files are, and what they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cmidd.cli import main
from cmidd.cli.data import load_for
from cmidd.options.commands import SetDataOptions
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of
from tests.support.tiny import tiny_run

MLP = "--network=mlp:width=4"


def pictures(folder: Path, size: int = 12) -> None:
    """A folder of pictures, two of each of two classes."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            place = folder / part / name
            place.mkdir(parents=True)
            for k in range(2):
                pixels = draw.integers(0, 256, (size, size, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{k}.png")


def test_a_report_is_replaced_if_that_is_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", "runs/digits"])
    page = Path("runs/report.html")
    page.write_text("another")
    with pytest.raises(SystemExit, match="exists already; add --overwrite"):
        main(["report", "runs/digits"])
    assert page.read_text() == "another"
    main(["report", "runs/digits", "--overwrite"])
    assert "runs/digits" in page.read_text()


@pytest.fixture
def runs(elsewhere: Path) -> Path:
    """Runs on pictures and on digits."""
    pictures(Path("pics"))
    words = ["--ipc=1", "--iterations=1", "--device=cpu", "--batch_real=2", MLP]
    main(["distill", "dm", "--dataset=folder:pics", "--size=8", "--out=runs/pics", *words])
    main(["distill", "dm", "--out=runs/digits", *words])
    return elsewhere


def evaluated(*words: str) -> str:
    main(["evaluate", *words, "--epochs=1", "--repeats=1", "--device=cpu"])
    record = json.loads(Path("runs/evaluation.json").read_text())
    Path("runs/evaluation.json").unlink()
    return str(record["dataset"])


def test_a_set_says_what_it_was_made_from(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated("runs/pics") == "folder:pics"
    assert evaluated("runs/pics/result.safetensors", "--random_real=1") == "folder:pics"
    assert evaluated("runs/pics", "--dataset=folder:pics", "--size=8") == "folder:pics"
    assert evaluated("runs/digits") == "digits"
    main(["pretrain", "--dataset=folder:pics", "--size=8", "--networks=1", "--epochs=1", MLP])
    capsys.readouterr()
    main(["score", "runs/pics", "--bank=runs/bank.safetensors"])
    assert capsys.readouterr().out.startswith("runs/pics/result.safetensors\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["runs/pics", "--dataset=digits"],
            "--dataset: runs/pics was made from --dataset folder:pics --size 8, got --dataset "
            "digits; leave that out",
        ),
        (
            ["runs/pics", "--size=12"],
            "--dataset: runs/pics was made from --dataset folder:pics --size 8, got --size 12; "
            "leave that out",
        ),
        (
            ["runs/digits", "runs/pics"],
            "--sets: runs/digits was made from --dataset digits, runs/pics from --dataset "
            "folder:pics --size 8; give a command for each",
        ),
        (["."], "--sets: expected a file with a synthetic set, found none at result.safetensors"),
    ],
)
def test_other_images_than_those_of_the_set_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    capsys.readouterr()
    assert message in error_of(["evaluate", *words], capsys)


def test_images_that_are_not_there_any_more(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pics").rename("gone")
    capsys.readouterr()
    said = error_of(["evaluate", "runs/pics"], capsys)
    assert "--dataset: runs/pics was made from --dataset folder:pics --size 8, which is not" in said
    assert "looked for pics" in said


def test_a_set_from_python_may_have_images_that_no_name_loads(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(ValueError, match="made from tiny, which --dataset cannot load"):
        load_for([tmp_path / "run"], SetDataOptions())


def test_a_set_of_the_hub_is_loaded_as_its_run_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_run(tmp_path / "run")
    config = {"dataset": "hub:ants", "data": "there", "size": None}
    SyntheticSet(made.images, made.labels, {**made.record, "config": config}).save(tmp_path / "set")
    asked: list[object] = []

    def load_dataset(*words: object, **options: object) -> None:
        asked.extend([*words, options])
        raise FileNotFoundError

    monkeypatch.setattr("cmidd.cli.data.load_dataset", load_dataset)
    for data in (SetDataOptions(), SetDataOptions(dataset="tiny"), SetDataOptions("hub:other")):
        with pytest.raises(FileNotFoundError):
            load_for([tmp_path / "set"], data)
    SyntheticSet(made.images, made.labels, {**made.record, "config": "?"}).save(tmp_path / "odd")
    with pytest.raises(ValueError, match="odd was made from tiny, which --dataset cannot load"):
        load_for([tmp_path / "odd"], SetDataOptions())
    there = [Path("there"), {"size": None, "keep_decoded": 4 * 2**30, "on_demand": False}]
    assert asked == ["hub:ants", *there, "tiny", *there, "hub:other", *there]


def test_the_folder_of_a_run_stands_for_its_result(runs: Path) -> None:
    main(["export", "runs/digits", "--pt=pt"])
    images = torch.load("pt/images_best.pt", weights_only=True)
    assert torch.equal(images, SyntheticSet.load(Path("runs/digits")).images)
    main(["distill", "dm", "--init=file:runs/digits", "--ipc=1", "--iterations=0", "--out=again",
          "--device=cpu", MLP])  # fmt: skip
    assert torch.equal(SyntheticSet.load(Path("again")).images, images)
