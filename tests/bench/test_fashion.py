"""Cases on FashionMNIST: what is run in which order, how it goes on, and what the tables say."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.fashion import pictures, report
from bench.fashion.__main__ import rows_found, with_recorded
from bench.fashion.cases import SETTINGS, SWEEPS, TABLE, Case
from bench.fashion.steps import Runner, Step, steps_of
from bench.harness.records import Record, Row

SMALL = Case(
    "dm", 1, (1, 2), options=("--network=convnet:width=4,depth=1", "--batch_real=2"), networks=1,
    epochs=1,
)  # fmt: skip


def row(case: Case, stage: int, *accuracies: float) -> Row:
    recipe = {"network": "convnet", "epochs": case.epochs or 1000, "lr": 0.01}
    return {**case.about(), "iterations": stage, **recipe, "accuracies": [*accuracies]}


def record(rows: list[Row], shown: str = "table") -> Record:
    machine: dict[str, Any] = {"cpu": "c", "threads": 2, "torch": "t", "cmikernels": "k"}
    return Record("fashion", {**machine, "backends": {}}, {"rows": shown, **SETTINGS}, rows)


def test_files_come_first_and_every_case_has_its_first_stage_before_a_second(
    tmp_path: Path,
) -> None:
    two = replace(SMALL, stages=(1,), weight=2.0)
    steps = steps_of([SMALL, two], tmp_path)
    assert [step.name for step in steps] == ["bank", "dm-1-seed0", "dm-1-cmi2-seed0", "dm-1-seed0"]
    assert steps[2].needs == (tmp_path / "bank.safetensors",)
    assert "--held_out=0.2" in steps[0].commands[0]  # which a sweep judges by
    assert not any("held_out" in word for step in steps[1:] for w in step.commands for word in w)
    (held,) = steps_of([replace(two, held_out=True, weight=0.0)], tmp_path)
    assert all("--held_out=0.2" in words for words in held.commands)


@pytest.mark.slow
def test_a_case_goes_from_stage_to_stage_and_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.fashion.steps.DATASET", "digits")
    Runner(tmp_path, 1).run(steps_of([replace(SMALL, stages=(1,))], tmp_path))
    (first,) = rows_found([SMALL], tmp_path)
    assert (first["iterations"], len(first["accuracies"])) == (1, 1)
    wanted = replace(SMALL, stages=(1, 2), networks=2)
    steps = steps_of([wanted], tmp_path)
    # Two networks are for a stage that is not the last: one of the first was trained above.
    assert [step.makes.name for step in steps] == ["1.json", "2.json"]
    stopped = Runner(tmp_path, 1)
    timer = threading.Timer(0.5, stopped.stop)
    timer.start()
    stopped.run(steps)
    Runner(tmp_path, 2).run(steps_of([wanted], tmp_path))
    assert steps_of([wanted], tmp_path) == []
    rows = rows_found([wanted], tmp_path)
    assert [(each["iterations"], len(each["accuracies"])) for each in rows] == [(1, 2), (2, 2)]
    assert rows[0]["accuracies"][0] == first["accuracies"][0]


def test_a_command_that_fails_ends_the_run_and_names_its_words(tmp_path: Path) -> None:
    step = Step("x", (("nosuch",),), (), tmp_path / "x" / "0.json")
    with pytest.raises(RuntimeError, match=r"cmidd nosuch ended with 2; see .*x\.log"):
        Runner(tmp_path, 1).run([step, step])
    assert "no command nosuch" in (tmp_path / "x.log").read_text()


def test_what_was_recorded_stays_unless_more_networks_are_there() -> None:
    old, other = row(SMALL, 1, 0.5, 0.6), row(SMALL, 2, 0.1)
    assert with_recorded([], [old]) == [old]
    assert with_recorded([row(SMALL, 1, 0.5)], [old, other]) == [old, other]
    more = row(SMALL, 1, 0.5, 0.6, 0.7)
    assert with_recorded([more], [old]) == [more]


def test_the_table_says_what_is_missing_and_what_is_published() -> None:
    dc = next(case for case in TABLE if case.method == "dc")
    text = report(record([row(dc, 100, 0.6, 0.7), row(dc, 200, 0.7, 0.702)]))
    (line,) = [each for each in text.splitlines() if "DC" in each and "±" in each][:1]
    assert "70.1 ± 0.1" in line
    assert "70.5 ± 0.6" in line
    assert "1,000" in line
    idc = next(case for case in TABLE if case.method == "idc" and not case.label)
    idc_i = replace(idc, label="factor 1", options=(*idc.options[:-1], "--factor=1"))
    shown = report(record([row(idc, 30, 0.76), row(idc_i, 30, 0.68)])).splitlines()
    assert [("81.0" in line, "70.7" in line) for line in shown if "IDC" in line and "±" in line][
        :2
    ] == [(True, False), (False, True)]
    assert (
        text.count("not run yet") == len({(c.method, c.ipc, c.weight, c.label) for c in TABLE}) - 1
    )
    assert "65.0 ± 5.0" in text  # over iterations


def test_the_effect_of_cmi_is_told_seed_by_seed_with_its_error() -> None:
    cases = [case for case in TABLE if (case.method, case.ipc) == ("dm", 10)]
    gain = {0: 0.02, 1: 0.01, 2: 0.0}
    rows = [row(c, 300, 0.8 + (gain[c.seed] if c.weight else 0), 0.8) for c in cases]
    assert "adds +0.5 points (standard error 0.29; seed by seed +1.0, +0.5, +0.0)" in report(
        record(rows)
    )
    assert "adds +1.0 points (one seed" in report(record(rows[:2]))
    assert "adds" not in report(record(rows[:1]))
    # Networks are compared in pairs: one that the other side lacks does not count.
    more = [{**each, "accuracies": [*each["accuracies"], 0.1]} if not each["weight"] else each
            for each in rows]  # fmt: skip
    assert "adds +0.5 points (standard error 0.29" in report(record(more))


def test_rows_of_other_settings_are_not_shown() -> None:
    case = next(case for case in TABLE if case.method == "dc")
    other = row(replace(case, options=("--batch_real=256",)), 100, 0.2)
    assert "20.0" not in report(record([other, row(case, 100, 0.7)]))
    assert len(with_recorded([row(case, 100, 0.7)], [other])) == 2


def test_a_sweep_is_shown_with_what_judged_it(tmp_path: Path) -> None:
    cases = SWEEPS["cmi"]
    text = report(record([row(case, case.stages[-1], 0.8) for case in cases], "cmi"))
    assert text.count("80.0 ± 0.0") == len(cases)
    assert "tested on the others" in text
    assert pictures(record([], "cmi"), tmp_path / "p") == []


def test_a_sweep_over_seeds_says_what_a_setting_adds() -> None:
    cases = SWEEPS["precision"]
    gain = {0: -0.01, 1: 0.01, 2: 0.0}
    rows = [row(case, 100, 0.8 + (gain[case.seed] if case.label else 0)) for case in cases]
    text = report(record(rows, "precision"))
    assert text.count("1+1+1") == 2
    assert (
        "networks in bfloat16: +0.0 points (standard error 0.58; seed by seed -1.0, +1.0, +0.0) "
        "beside DM + CMI of weight 2000." in text
    )


def test_accuracy_is_drawn_over_iterations(tmp_path: Path) -> None:
    dc = next(case for case in TABLE if case.method == "dc")
    drawn = pictures(record([row(dc, 100, 0.6, 0.7), row(dc, 200, 0.7)]), tmp_path / "p")
    assert [path.name for path in drawn] == ["p.png"]
    assert drawn[0].stat().st_size > 10_000


def test_cases_have_names_of_their_own() -> None:
    every = {*TABLE, *(case for cases in SWEEPS.values() for case in cases)}
    assert len({case.name for case in every}) == len(every)
    assert json.dumps([case.about() for case in every])
