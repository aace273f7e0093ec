"""The command that recovers images, and those that take what it makes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cmidd.cli import main
from cmidd.options.recover import RECIPES, RecoverOptions
from cmidd.recovery.published import SETTINGS, fill_in_published, published
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of
from tests.support.parsed import made
from tests.support.recovered import TEACHER
from tests.support.tiny import tiny_dataset

BANK = "runs/bank.safetensors"
RECOVER = ["recover", f"--teacher={BANK}", "--ipc=2", "--batch_size=6", "--device=cpu"]


@pytest.fixture(scope="module", autouse=True)
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of these tests, with a teacher of digits."""
    place = tmp_path_factory.mktemp("recover")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        main(["pretrain", f"--network={TEACHER}", "--networks=1", "--epochs=2", "--device=cpu"])
        yield place


def test_what_it_makes_goes_through_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([*RECOVER, "--iterations=3", "--cmi_weight=1", "--out=runs/one"])
    said = capsys.readouterr().out
    assert "not given, so as known: start noise, " in said
    assert "(not published for digits; those of SRe2L on cifar100)" in said
    assert "4 batches of up to 6 images: 3 classes with 2 of each" in said
    hint = said.rpartition("try it: cmidd ")[2]
    assert made(shlex.split(hint))[1].sets == (Path("runs/one/result.safetensors"),)
    config = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    assert (config["method"], config["ipc"], config["teacher"]) == ("recover", 2, [BANK])
    again = ["recover", "--config=runs/one/config.yaml", "--out=runs/two"]
    main(again)
    one, two = (SyntheticSet.load(Path("runs") / name) for name in ("one", "two"))
    assert (one.images == two.images).all()
    main(["evaluate", "runs/one", "--networks=mlp", "--epochs=2", "--repeats=1", "--device=cpu"])
    (result,) = json.loads(Path("runs/evaluation.json").read_text())["results"]
    assert result["images"] == 20
    recipe = result["evaluations"][0]["recipe"]
    assert (recipe["optimizer"], recipe["schedule"]) == ("adamw", "cosine")
    main(["score", "runs/one", f"--bank={BANK}", "--device=cpu"])
    main(["export", "runs/one", "--png=pictures"])
    assert len(list(Path("pictures").rglob("*.png"))) == 20
    main(["report", "runs/one", "--evaluations", "runs/evaluation.json"])
    assert "RECOVER" in Path("runs/report.html").read_text()
    main(["distill", "dm", "--init=file:runs/one", "--ipc=2", "--iterations=0", "--device=cpu"])
    assert (SyntheticSet.load("runs/dm").images == one.images).all()
    main([*RECOVER, "--iterations=3", "--cmi_weight=1", "--out=runs/one", "--resume"])
    assert "runs/one is finished already" in capsys.readouterr().out


def test_a_run_that_is_there_needs_no_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RECOVER, "--iterations=1", "--out=runs/there"]
    main(words)
    Path(BANK).rename("runs/elsewhere")
    try:
        capsys.readouterr()
        main([*words, "--resume"])
        assert capsys.readouterr().out.startswith("runs/there is finished already\n")
        assert "seed: 0 there, 1 now" in error_of([*words, "--resume", "--seed=1"], capsys)
        assert BANK in error_of([*words[:-1], "--out=runs/not"], capsys)
    finally:
        Path("runs/elsewhere").rename(BANK)


def test_a_dry_run_says_what_it_costs_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    main([*RECOVER, "--recipe=dwa", "--dry_run", "--out=runs/three"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "4 batches of up to 6 images: 3 classes with 2 of each"
    assert re.fullmatch(
        r"about .*s a step, .* a batch, .* in all; memory \S+B, disk \S+B", lines[-1]
    )
    assert sorted(folder.rglob("*")) == before


def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "--network=mlp", "--networks=1", "--epochs=1", "--out=runs/mlp"])
    capsys.readouterr()
    words = [*RECOVER, "--out=runs/four"]
    assert re.fullmatch(
        r"cmidd: --teacher: expected networks with batch norm, .* got one without in .*mlp; .*\n",
        error_of([*words, "--teacher=runs/mlp"], capsys),
    )
    assert error_of([*words, "--order=image", "--cmi_weight=1"], capsys).startswith(
        "cmidd: --order: image gives a batch one image of each class"
    )
    assert error_of([*words, "--patches=3"], capsys).startswith("cmidd: --patches: expected a")
    assert not Path("runs/four").exists()


# The set with the smallest images that a recipe was published for.
OF_SMALLEST = {"sre2l": "cifar100", "cda": "tinyimagenet", "dwa": "cifar100", "edc": "imagenet"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["cifar100", "imagenet", "tiny"])
def test_settings_are_those_of_the_set_or_of_the_nearest_one(recipe: str, name: str) -> None:
    dataset = tiny_dataset(name)
    options, words = fill_in_published(dataset, RecoverOptions((Path("t"),), recipe=recipe))
    known = (recipe, name) in SETTINGS
    assert words.endswith("as published)") == known
    expected = SETTINGS[recipe, name if known else OF_SMALLEST[recipe]]
    assert (options.iterations, options.lr) == (expected["iterations"], expected["lr"])
    assert options.jitter == expected.get("jitter", 1)
    assert published(dataset, recipe)["rded_factor"] == 1
