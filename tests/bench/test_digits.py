"""Cases on digits: what is run, how it is judged, and what the tables say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bench.digits import __main__ as command
from bench.digits import report, runs
from bench.digits.cases import Case, settings_cases, sweep_cases, table_cases
from bench.harness.records import Record
from cmidd.datasets import Dataset, ImageSet, load_dataset
from cmidd.evaluate import evaluate
from cmidd.methods import METHODS, CMIWeights, Published
from cmidd.options.infonce import InfoNCEOptions
from cmidd.options.pretrained import BankOptions
from cmidd.options.recipe import Recipe
from cmidd.storage.run_folder import read_log
from cmidd.synthetic import SyntheticSet

TINY = "network=convnet:width=4,depth=1"
IDC = f"{TINY} factor=2 iterations=2 inner_steps=2 images_net=64 batch_real=8 lr_images=0.5"


def record(rows: list[dict[str, Any]]) -> Record:
    return Record("digits", {}, {"networks": 2}, rows)


def test_cmi_has_a_row_wherever_it_is_not_0_and_has_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def several(dataset: Dataset, ipc: int) -> Published:
        return Published(options={"factor": 2})

    weights = CMIWeights(ours={"digits": (3.0, 4.0)})
    monkeypatch.setitem(
        METHODS, "more", replace(METHODS["dm"], published=several, cmi_weights=weights)
    )
    monkeypatch.setitem(METHODS, "none", replace(METHODS["dm"], cmi_weights=CMIWeights()))
    found = table_cases(["dm", "more", "none", "random", "all"], [1, 10], [0])
    assert sorted((case.method, case.ipc, case.weight) for case in found) == [
        ("all", 0, 0.0), ("dm", 1, 0.0), ("dm", 10, 0.0), ("dm", 10, 1.0),
        ("more", 1, 0.0), ("more", 1, 3.0), ("more", 10, 0.0), ("more", 10, 3.0),
        ("none", 1, 0.0), ("none", 10, 0.0), ("random", 1, 0.0), ("random", 10, 0.0),
    ]  # fmt: skip
    assert {case.judge for case in found} == {"test"}


def test_settings_are_judged_by_images_that_are_held_out() -> None:
    found = settings_cases(["idc"], ["", "factor=1  lr_images=1e-2"], [1], [100, 101])
    assert [(case.seed, case.settings) for case in found] == [
        (100, ""), (101, ""), (100, "factor=1 lr_images=1e-2"), (101, "factor=1 lr_images=1e-2"),
    ]  # fmt: skip
    assert {(case.judge, case.weight) for case in found} == {("held out", 0.0)}
    assert len({case.run for case in found}) == 4
    assert found[2].given == {"factor": 1, "lr_images": 0.01}
    assert Case("idc", 1, 0.0, 0, "held out", TINY).given == {"network": TINY[8:]}
    assert {case.judge for case in sweep_cases(["dm"], [1.0], [10], [0])} == {"train"}
    (chosen,) = settings_cases(["dm"], ["mim_weight=1"], [1], [0], "test")
    assert (chosen.judge, chosen.given) == ("test", {"mim_weight": 1})


def test_settings_are_those_of_methods_alone() -> None:
    found = settings_cases(["dm", "random", "all"], ["", "mim_weight=1"], [1], [0])
    assert [(case.method, case.settings) for case in found] == [("dm", ""), ("dm", "mim_weight=1")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--judge", "test"], "--judge: expected with --settings alone"),
        (["--sweep", "1", "--judge", "test"], "--judge: expected with --settings alone"),
        (["--methods", "random", "--settings", "mim_weight=1"], "--methods: expected one of dm, "),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.digits", *words])
    monkeypatch.setattr(command, "run_all", lambda *_: pytest.fail("it ran"))
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", ["idc", "iid"])
def test_a_case_is_distilled_decoded_and_judged_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, judged = load_dataset("digits"), []

    def watched(images: Any, labels: Any, dataset: Dataset, *words: Any, **more: Any) -> Any:
        judged.append((len(images), dataset))
        return evaluate(images, labels, dataset, [TINY[8:]], **more)

    monkeypatch.setattr(runs, "evaluate", watched)
    monkeypatch.setattr(runs, "EVALUATION", {1: Recipe(epochs=1), 50: Recipe(epochs=1)})
    bank = BankOptions(TINY[8:], networks=1, epochs=1)
    monkeypatch.setattr(runs, "BANK", bank)
    monkeypatch.setitem(runs.UPDATES, "iid", 2)
    given = IDC if method == "idc" else f"{TINY} batch_real=8 mim_weight=0.5"
    (case,) = settings_cases([method], [given], [2], [100])
    monkeypatch.setattr(runs, "ProcessPoolExecutor", InTurn)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which is set, and put back
    (row,) = runs.run_all([case], tmp_path, 1)
    assert row.items() >= asdict(case).items()
    ((count, dataset),) = judged
    assert count == 20 * (4 if method == "idc" else 1)
    assert dataset.held_out == runs.HELD_OUT
    assert not shares_images(dataset.test, real.test)
    made = SyntheticSet.load(tmp_path / case.run)
    assert (made.record["held_out"], made.record["seed"]) == (runs.HELD_OUT, 100)
    log = read_log(tmp_path / case.run / "log.jsonl")
    assert len(log) > 0
    assert all(("mim" in line) == (method == "iid") for line in log)
    assert runs.run_all([case], tmp_path, 1) == [row]  # of its file
    assert len(judged) == 1


class InTurn:
    """In the place of processes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.map = map

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def shares_images(one: ImageSet, other: ImageSet) -> bool:
    found = [{image.numpy().tobytes() for image in each.images} for each in (one, other)]
    return bool(found[0] & found[1])


def test_what_a_result_depends_on_is_that_of_its_methods() -> None:
    of_dm, of_both = runs.settings(["dm"]), runs.settings(["dm", "idc", "random"])
    assert of_dm["published"].items() < of_both["published"].items()
    assert of_dm["updates"] == {"dm": 300}
    assert json.loads(json.dumps(of_both)) == of_both
    assert runs.settings(["dm"], ["", "lr_images=1"]) == of_dm
    of_infonce = runs.settings(["dm"], ["", "lr_images=1 mim_weight=1"])
    assert of_infonce == {**of_dm, "infonce": of_infonce["infonce"]}
    assert of_infonce["infonce"]["mim_temperature"] == InfoNCEOptions().mim_temperature


def test_the_table_tells_settings_and_judges_apart() -> None:
    case = Case("idc", 1, 0.0, 100, "held out", "factor=1")
    cases = [case, replace(case, seed=101), replace(case, settings="")]
    accuracies = [0.8, 0.9, 0.7]
    text = report(
        record([{**asdict(c), "accuracy": a} for c, a in zip(cases, accuracies, strict=True)])
    )
    assert "IDC, factor=1 " in text
    assert "85.0 ± 7.1" in text
    assert "70.0 ± 0.0" in text
    assert "Judged by training images that were held out" in text
    old = {"method": "dm", "ipc": 1, "weight": 0.0, "judge": "test", "accuracy": 0.5}
    assert "Judged by the real test images" in report(record([old]))  # without settings
