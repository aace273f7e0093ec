from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cmidd.cli import main
from cmidd.options.distill import DistillOptions
from cmidd.run import run_folder
from cmidd.synthetic import SyntheticSet
from tests.support.errors import error_of
from tests.support.parsed import made
from tests.support.tiny import DM_OPTIONS, tiny_dataset, tiny_run

DM = ["distill", "dm"]


TINY, OTHER = "convnet:width=4,depth=1", "convnet:width=4,depth=2"


SET = "runs/dm/result.safetensors"


DISTILL = [
    *["distill", "dm", "--ipc=2", "--iterations=6", "--report_every=2", "--network", TINY],
    *["--batch_real=4", "--bank=runs/bank.safetensors"],
]


EVALUATE = [
    *["evaluate", SET, "--random_real=2", "--all_real", "--all_real_epochs=1"],
    *["--epochs=3", "--repeats=2", "--networks", TINY, "mlp"],
]


def test_pretrain_distil_evaluate_and_score(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", "--network", TINY, "--networks=2", "--epochs=1"])
    assert load_file("runs/bank.safetensors")["trained"].tolist() == [1, 1]
    main(DISTILL)
    said = capsys.readouterr().out
    assert "network 2 of 2: " in said
    hint = said.rpartition("try it: cmidd ")[2]
    assert made([*shlex.split(hint), "--repeats=2"])[1].sets == (Path(SET),)
    config = yaml.safe_load(Path("runs/dm/config.yaml").read_text())
    assert (config["method"], config["ipc"], config["bank"]) == ("dm", 2, "runs/bank.safetensors")
    log = [json.loads(line) for line in Path("runs/dm/log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in log] == [1, 3, 5]
    assert all(line["loss"] > 0 and line["cmi"] > 0 for line in log)

    main(EVALUATE)
    record = json.loads(Path("runs/evaluation.json").read_text())
    assert made(shlex.split(record["command"])[1:]) == made(EVALUATE)
    assert record["dataset"] == "digits"
    assert set(record["versions"]) == {"cmikernels", "torch", "python"}
    names = {SET: 20, "random real images, 2 per class": 20, "all real images": 1438}
    assert {result["set"]: result["images"] for result in record["results"]} == names
    for result in record["results"]:
        assert [evaluation["network"] for evaluation in result["evaluations"]] == [TINY, "mlp"]
        for evaluation in result["evaluations"]:
            assert len(evaluation["accuracies"]) == 2
            assert 0 <= evaluation["mean"] <= 1
            epochs = 1 if result["set"] == "all real images" else 3
            assert evaluation["recipe"]["epochs"] == epochs

    capsys.readouterr()
    main(["score", SET, "--random_real=2", "--all_real", "--bank=runs/bank.safetensors"])
    table = capsys.readouterr().out.splitlines()
    assert table[0] == SET
    for start in (1, 14, 27):
        assert [x.split()[0] for x in table[start : start + 12]] == ["all", "NCMI", *"0123456789"]
    assert table[13] == "random real images, 2 per class"
    assert re.fullmatch(r"all 1\d\d\d real images", table[26])
    with pytest.raises(SystemExit, match="--layer: expected 'features', 'logits' or a submodule"):
        main(["score", SET, "--bank=runs/bank.safetensors", "--layer=nosuch"])
    assert capsys.readouterr().out == ""


def test_scores_are_kept_and_drawn(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", "--network", TINY, "--networks=2", "--epochs=1"])
    words = ["score", "--random_real=2", "--all_real", "--bank=runs/bank.safetensors"]
    main(words)
    printed = capsys.readouterr().out
    assert "the scores" not in printed
    main([*words, "--out=new/score.json"])
    said = capsys.readouterr().out
    assert said.endswith("the scores: new/score.json\nthe picture: new/score.png\n")
    assert said.startswith(printed[printed.index("random real") :])
    record = json.loads(Path("new/score.json").read_text())
    assert record["class_names"] == list("0123456789")
    assert made(shlex.split(record["command"])[1:]) == made([*words, "--out=new/score.json"])
    names = ["random real images, 2 per class", "all 1438 real images"]
    assert [(found["set"], found["images"]) for found in record["scores"]] == [
        (names[0], 20), (names[1], 1438),
    ]  # fmt: skip
    for found in record["scores"]:
        assert f"  all   {found['cmi']['mean']:.4e} +- {found['cmi']['std']:.1e} nats\n" in said
        for c, of_class in enumerate(found["of_classes"]):
            assert f"  {c}     {of_class['mean']:.4e} +- {of_class['std']:.1e}\n" in said
        assert [len(network["of_classes"]) for network in found["networks"]] == [10, 10]
    assert Path("new/score.png").read_bytes().startswith(b"\x89PNG")


def test_scores_replace_nothing_that_one_does_not_give_up(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", "--network=mlp:width=4", "--networks=1", "--epochs=1"])
    for name in ("there.json", "other.png"):
        Path(name).write_text("mine")
    Path("folder.png").mkdir()
    score = ["score", "--random_real=1", "--bank=runs/bank.safetensors"]
    for words, message in (
        ("--out=a.txt", "--out: expected a file whose name ends in .json, got a.txt"),
        ("--plot=a.jpg", "--plot: expected a file whose name ends in .png, got a.jpg"),
        ("--out=there.json", "--out: there.json exists already; add --overwrite, or name"),
        ("--out=other.json", "--plot: other.png exists already; add --overwrite, or name"),
        ("--plot=folder.png", "--plot: folder.png is a folder; name a file in it"),
        ("--out=other.png/a.json --overwrite", "--out: other.png is a file; expected a folder"),
    ):
        assert message in error_of([*score, *words.split()], capsys)
        assert Path("there.json").read_text() == Path("other.png").read_text() == "mine"
    main([*score, "--out=there.json", "--plot=other.png", "--overwrite"])
    assert json.loads(Path("there.json").read_text())["scores"]
    assert Path("other.png").read_bytes().startswith(b"\x89PNG")


def networks_and_epochs() -> dict[str, tuple[list[str], int]]:
    results = json.loads(Path("runs/evaluation.json").read_text())["results"]
    Path("runs/evaluation.json").unlink()
    return {
        result["set"]: (
            [evaluation["network"] for evaluation in result["evaluations"]],
            result["evaluations"][0]["recipe"]["epochs"],
        )
        for result in results
    }


def test_each_set_is_evaluated_as_it_was_made_for_and_real_images_as_all(elsewhere: Path) -> None:
    main(["distill", "dm", "--ipc=1", "--iterations=1", f"--network={TINY}"])
    main(["distill", "dc", "--ipc=1", "--iterations=1", "--network=mlp", "--batch_real=4"])
    dm, dc = (Path(f"runs/{method}/result.safetensors") for method in ("dm", "dc"))
    made_dm, made_dc = SyntheticSet.load(dm), SyntheticSet.load(dc)
    assert made_dc.record["evaluation"] == {"epochs": 300, "augmentation": "none"}
    record = {**made_dc.record, "evaluation": {"epochs": 2, "augmentation": "none"}}
    replace(made_dc, record=record).save(dc)
    record = {**made_dm.record, "evaluation": {"epochs": 3}}
    replace(made_dm, record=record).save(dm)
    words = ["evaluate", str(dm), str(dc), "--repeats=1"]
    main(words)
    assert networks_and_epochs() == {str(dm): ([TINY], 3), str(dc): (["mlp"], 2)}
    main([*words, "--random_real=1", "--epochs=1"])
    assert networks_and_epochs()["random real images, 1 per class"] == ([TINY, "mlp"], 1)
    main([*words, f"--networks={OTHER}", "--epochs=1"])
    assert networks_and_epochs() == {str(dm): ([OTHER], 1), str(dc): ([OTHER], 1)}
    main(["evaluate", "--random_real=1", "--epochs=1", "--repeats=1"])
    assert list(networks_and_epochs().values()) == [(["convnet"], 1)]


def test_a_run_is_repeated_by_the_command_in_its_result(elsewhere: Path) -> None:
    main(["pretrain", "--network", TINY, "--networks=2", "--epochs=1"])
    main(DISTILL)
    first = Path(SET).read_bytes()
    record = SyntheticSet.load(Path(SET)).record
    Path("runs/dm").rename("runs/before")
    main(shlex.split(record["command"])[1:])
    assert Path(SET).read_bytes() == first


def test_a_run_that_was_moved_goes_on(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*DISTILL[:-1]])
    Path("runs/dm").rename("moved")
    main([*DISTILL[:-1], "--out=moved", "--resume"])
    assert "moved is finished already" in capsys.readouterr().out


def test_python_dash_m_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cmidd", "--version"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # so that it changes nothing of this process
    monkeypatch.delitem(sys.modules, "cmidd.__main__", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("cmidd", run_name="__main__")
    assert stopped.value.code == 0


def test_a_run_is_repeated_by_its_config(elsewhere: Path) -> None:
    main(DISTILL[:-1])
    main(["distill", "dm", "--config", "runs/dm/config.yaml", "--out", "again"])
    first, second = (
        SyntheticSet.load(Path(folder) / "result.safetensors") for folder in ("runs/dm", "again")
    )
    assert torch.equal(first.images, second.images)


def test_a_set_is_exported(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(DISTILL[:-1])
    main(["export", SET, "--png", "pictures", "--pt", "pair"])
    assert len(list(Path("pictures").glob("*/*.png"))) == 20
    images = torch.load("pair/images_best.pt", weights_only=True)
    assert torch.equal(images, SyntheticSet.load(Path(SET)).images)


@pytest.mark.parametrize("other", ["full", "file"])
def test_no_part_of_an_export_is_written_where_another_cannot(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    tiny_run(elsewhere / "run")
    Path("full").mkdir()
    for name in ("full/mine", "file"):
        Path(name).write_text("kept")
    pytest.importorskip("datasets")
    for first, second in (("png", "pt"), ("pt", "png"), ("pt", "hub"), ("hub", "pt")):
        said = error_of(["export", "run", f"--{first}=new", f"--{second}={other}"], capsys)
        assert said.startswith(f"cmidd: --{second}: {other} is ")
        assert not Path("new").exists()


def test_an_export_says_what_it_wrote(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tiny_run(elsewhere / "run")
    main(["export", "run", "--pt=pt"])
    assert capsys.readouterr().out == "images_best.pt (normalised) and labels_best.pt: pt\n"
    replace(made, record={**made.record, "learned_lr": 0.05}).save("learned")
    main(["export", "learned", "--pt=pair"])
    assert capsys.readouterr().out == (
        "images_best.pt (normalised), labels_best.pt and lr.pt (learned, 0.05): pair\n"
    )


def test_a_folder_for_the_hub_has_the_accuracies_that_are_in_the_folder_of_the_run(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    main(DISTILL[:-1])
    main(["export", "runs/dm", "--hub=without"])
    assert "It was not evaluated" in Path("without/README.md").read_text()
    words = [*["evaluate", "runs/dm", "--random_real=2", "--networks=mlp", "--epochs=1"],
             *["--repeats=2", "--out=runs/dm/evaluation.json"]]  # fmt: skip
    main(words)
    capsys.readouterr()
    main(["export", SET, "--hub=the set"])
    assert capsys.readouterr().out.splitlines() == [
        "a table, the set and a card: the set",
        "read README.md there, add a licence, and upload it:",
        "hf upload YOU/NAME 'the set' --repo-type dataset",
    ]
    results = json.loads(Path("runs/dm/evaluation.json").read_text())["results"]
    card = Path("the set/README.md").read_text()
    mean = results[0]["evaluations"][0]["mean"]
    assert re.findall(r"^\| mlp \| ([\d.]+) ± [\d.]+ \| 2 \| epochs 1, ", card, re.M) == [
        f"{100 * mean:.1f}"
    ]
    record = SyntheticSet.load(Path(SET)).record
    assert SyntheticSet.load(Path("the set")).record == record
    assert f"\n    {record['command']}\n" in card


def test_without_the_library_a_folder_for_the_hub_is_an_error(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run(elsewhere / "run")
    monkeypatch.setitem(sys.modules, "datasets", None)
    capsys.readouterr()
    assert error_of(["export", "run", "--hub=new", "--pt=pt"], capsys) == (
        'cmidd: --hub: needs the package datasets: pip install "cmikernels[hub]"\n'
    )
    assert [path.name for path in elsewhere.iterdir()] == ["run"]


def test_a_finished_run_needs_none_of_its_files(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", "--networks=1", "--epochs=1", "--network=mlp", "--device=cpu"])
    words = ["distill", "dm", "--ipc=2", "--iterations=1", "--network=convnet:width=4,depth=1",
             "--bank=runs/bank.safetensors", "--device=cpu"]  # fmt: skip
    main(words)
    Path("runs/bank.safetensors").unlink()
    main([*words, "--resume"])
    assert "runs/dm is finished already" in capsys.readouterr().out
    error_of(words, capsys)  # which names the folder, before a bank is looked for
    with pytest.raises(SystemExit, match="--out: runs/dm holds a run already"):
        main(words)


def test_a_dataset_is_kept_as_it_was_asked_for(elsewhere: Path) -> None:
    asked = {"dataset": "hub:ylecun/mnist", "data": Path("there")}
    options = DistillOptions(1, "real", 1, 1.0, 0.5, 0, 1, 1)
    folder = run_folder(
        "run", "dm", tiny_dataset("mnist"), (options, DM_OPTIONS), resume=False, asked=asked
    )
    assert folder.config["dataset"] == "hub:ylecun/mnist"
    assert folder.config["data"] == "there"


def test_results_are_kept_set_by_set(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cmidd.evaluate import evaluate_set

    calls: list[int] = []

    def second_fails(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no more")
        return evaluate_set(*arguments, **options)

    monkeypatch.setattr("cmidd.cli.evaluation.evaluate_set", second_fails)
    words = ["evaluate", "--random_real=1", "--all_real", "--epochs=1", "--repeats=1"]
    error_of([*words, "--networks", "mlp"], capsys)
    record = json.loads(Path("runs/evaluation.json").read_text())
    assert [result["set"] for result in record["results"]] == ["random real images, 1 per class"]
