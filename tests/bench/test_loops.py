from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.harness.records import RESULTS, Record, Row
from bench.loops import __main__ as loops
from bench.loops import measure
from bench.loops import report as loop_report
from bench.loops.setup import Setup
from bench.plain.rivals import RIVALS
from bench.render import section

QuickRun = Callable[..., tuple[list[Row], str]]


@pytest.fixture
def quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> QuickRun:
    """The benchmark's rows and what it says, on tiny networks."""

    def run(name: str, *arguments: str) -> tuple[list[Row], str]:
        given = ["--quick", "--threads", "1", "--memory", "kept", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["bench.loops", *given, *arguments])
        loops.main()
        said = capsys.readouterr().out
        assert loop_report.report(Record.read(tmp_path / f"{name}.json")) in said
        return json.loads((tmp_path / f"{name}.json").read_text())["rows"], said

    return run


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process for each case: importing torch takes longer than all the rest."""
    monkeypatch.setattr(loops, "apart", lambda function, *arguments, **_: function(*arguments))


def of(rows: list[Row], part: str, loop: str) -> Row:
    (row,) = (row for row in rows if (row["part"], row["loop"]) == (part, loop))
    return row


def assert_measured(rows: list[Row], *parts: str) -> None:
    """Each part of both loops, and the same numbers from both."""
    measured = {(row["part"], row["loop"]) for row in rows}
    assert measured >= set(itertools.product(parts, ("plain", "ours")))
    assert of(rows, parts[0], "ours")["loss_error"] < 1e-5
    assert of(rows, parts[0], "ours")["gradient_error"] < 1e-2


def test_both_loops_of_dm_are_measured(quick_run: QuickRun) -> None:
    rows, said = quick_run("loops")
    assert_measured(rows, "iteration", "dm.network", "dm.real_images", "dm.real_branch",
                    "dm.synthetic_branch", "cmi", "images_step")  # fmt: skip
    assert of(rows, "iteration", "convolutions")["seconds"] > 0
    assert of(rows, "dm.real_branch", "ours")["convolution_seconds"] > 0
    assert "times as fast as the plain loop" in said


@pytest.mark.usefixtures("in_this_process")
def test_both_loops_of_iid_are_measured(quick_run: QuickRun) -> None:
    rows, said = quick_run("loops-iid", "--method", "iid")
    assert_measured(rows, "iteration", "dm.real_branch", "dm.synthetic_branch", "cmi")
    assert "times as fast as the plain loop" in said


@pytest.mark.usefixtures("in_this_process")
def test_both_loops_of_idm_are_measured(quick_run: QuickRun) -> None:
    rows, said = quick_run("loops-idm", "--method", "idm")
    assert_measured(rows, "iteration", "dm.network", "dm.real_images", "dm.real_branch",
                    "dm.synthetic_branch", "idm.training", "images_step")  # fmt: skip
    assert of(rows, "idm.training", "ours")["convolution_seconds"] > 0
    assert "times as fast as the plain loop" in said


DC_PARTS = ("first step", "later steps", "iteration", "dc.network", "dc.real_gradients",
            "dc.synthetic_gradients", "cmi", "dc.inner_training", "images_step")  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_both_loops_of_dc_are_measured(method: str, quick_run: QuickRun) -> None:
    rows, said = quick_run(f"loops-{method}", "--method", method)
    assert_measured(rows, *DC_PARTS)
    assert of(rows, "later steps", "convolutions")["seconds"] > 0
    assert of(rows, "dc.inner_training", "ours")["convolution_seconds"] > 0
    assert "ours, iteration: " in said


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_both_loops_of_idc_are_measured(quick_run: QuickRun) -> None:
    rows, _ = quick_run("loops-idc", "--method", "idc")
    parts = [part.replace("dc.", "idc.") for part in DC_PARTS if part != "cmi"]
    assert_measured(rows, *parts)


@pytest.mark.usefixtures("in_this_process")
def test_both_loops_of_ncfm_are_measured(quick_run: QuickRun) -> None:
    rows, said = quick_run("loops-ncfm", "--method", "ncfm")
    parts = ["network", "real_images", "real_branch", "synthetic_branch"]
    assert_measured(rows, "iteration", *(f"ncfm.{part}" for part in parts), "images_step")
    assert "times as fast as the plain loop" in said


@pytest.mark.usefixtures("in_this_process")
def test_both_loops_of_mtt_are_measured(quick_run: QuickRun) -> None:
    rows, said = quick_run("loops-mtt", "--method", "mtt")
    of_time = [row for row in rows if row["part"] != "peak"]
    assert_measured(of_time, "iteration", "mtt.experts", "mtt.student", "mtt.adjoint")
    peaks = {(row["loop"], row["steps"]) for row in rows if row["part"] == "peak"}
    assert peaks == set(itertools.product(("plain", "ours"), loops.QUICK.peaks))
    assert "times the memory of 1 in all" in said


@pytest.mark.usefixtures("in_this_process")
def test_a_method_without_a_plain_loop_is_measured_alone(
    quick_run: QuickRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RIVALS, "dm")
    rows, said = quick_run("loops")
    assert {row["loop"] for row in rows} == {
        "ours", "ours, CMI bf16", "ours, bf16", "convolutions"
    }  # fmt: skip
    assert of(rows, "cmi", "ours")["seconds"] > 0
    assert "as fast as the plain loop" not in said


def test_a_cut_run_goes_on_with_the_processes_that_are_left(
    quick_run: QuickRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[Any, ...]] = []
    most = [3]

    def pretend(function: Any, case: measure.Case, *arguments: Any, **_: Any) -> list[Row]:
        if len(done) == most[0]:
            raise KeyboardInterrupt
        done.append((function.__name__, *arguments))
        rows: list[Row] = function(case, *arguments)
        return rows

    monkeypatch.setattr(loops, "apart", pretend)
    cut = ("loops-mtt", "--method", "mtt", "--resume", "a commit")
    with pytest.raises(KeyboardInterrupt):
        quick_run(*cut)
    assert len(done) == most[0]
    most[0] = 100
    rows, _ = quick_run(*cut)
    jobs = [("measure",), *[("measure_peak", loop, steps)
            for steps in loops.QUICK.peaks for loop in ("plain", "ours")]]  # fmt: skip
    assert done == jobs
    assert len([row for row in rows if row["part"] == "peak"]) == 4


@pytest.mark.usefixtures("in_this_process")
def test_the_plain_loop_of_mtt_is_left_out_where_it_may_not_fit(
    quick_run: QuickRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Setup, "rival_fits", lambda _: False)
    rows, said = quick_run("loops-mtt", "--method", "mtt")
    timed = {row["loop"] for row in rows if row["part"] != "peak"}
    assert timed == {"ours", "convolutions"}
    assert "may not fit" in said


@pytest.mark.usefixtures("in_this_process")
def test_an_iteration_is_one_first_step_and_all_later_ones(quick_run: QuickRun) -> None:
    rows, _ = quick_run("loops-dc", "--method", "dc")
    for loop in ("plain", "ours", "convolutions"):
        first, later, whole = (
            of(rows, part, loop)["seconds"] for part in ("first step", "later steps", "iteration")
        )
        assert whole == pytest.approx(first + later, rel=1e-3)  # 2 updates at 2 images per class


def test_ratios_are_of_the_plain_loop_and_of_the_convolutions() -> None:
    seconds = {"plain": 6.0, "ours": 2.0, "convolutions": 1.0}
    _, ours, _ = measure.rows_of_seconds("iteration", seconds)
    assert ours["seconds"] == 2
    assert ours["speedup_over_plain"] == 3
    assert ours["over_convolutions"] == 2


def test_records_without_a_method_are_of_dm(tmp_path: Path) -> None:
    path = tmp_path / "loops.json"
    path.write_text((RESULTS / "loops.json").read_text())
    text = section(path)
    assert "`python -m bench.loops --name loops`" in text
    assert "| step " in text
    assert "- ours, step: 3.12 times as fast as the plain loop" in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("loops*.json")), ids=lambda path: path.stem)
def test_every_recorded_result_is_still_shown(path: Path) -> None:
    record = Record.read(path)
    text = loop_report.report(record)
    for row in record.rows:
        assert row["part"] == "peak" or f"| {row['part']} " in text
