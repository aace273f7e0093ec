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
from bench.loops import dc_parts, dm_parts, mtt_parts
from bench.loops import report as loop_report
from bench.render import section

Run = Callable[..., tuple[list[Row], str]]


@pytest.fixture
def quick_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
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
    monkeypatch.setattr(loops, "apart", lambda function, *arguments: function(*arguments))


def of(rows: list[Row], part: str, loop: str) -> Row:
    (row,) = (row for row in rows if (row["part"], row["loop"]) == (part, loop))
    return row


def assert_measured(rows: list[Row], *parts: str) -> None:
    """Each part of both loops, and the same numbers from both."""
    measured = {(row["part"], row["loop"]) for row in rows}
    assert measured >= set(itertools.product(parts, ("plain", "ours")))
    assert of(rows, parts[0], "ours")["loss_error"] < 1e-5
    assert of(rows, parts[0], "ours")["gradient_error"] < 1e-2


def test_both_loops_of_dm_are_measured(quick_run: Run) -> None:
    rows, said = quick_run("loops")
    assert_measured(rows, "step", "networks", "real batch", "augmentation", "real branch",
                    "synthetic branch", "regulariser", "optimiser")  # fmt: skip
    assert of(rows, "step", "convolutions")["seconds"] > 0
    assert "times as fast as the plain loop" in said


DC_PARTS = ("update", "network", "real gradients", "synthetic gradients", "regulariser",
            "inner training", "outer iteration")  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_both_loops_of_dc_are_measured(method: str, quick_run: Run) -> None:
    rows, said = quick_run(f"loops-{method}", "--method", method)
    assert_measured(rows, *DC_PARTS)
    assert of(rows, "inner training", "convolutions")["seconds"] > 0
    assert "ours, outer iteration: " in said


@pytest.mark.usefixtures("in_this_process")
def test_both_loops_of_mtt_are_measured(quick_run: Run) -> None:
    rows, said = quick_run("loops-mtt", "--method", "mtt")
    assert_measured([row for row in rows if row["part"] != "peak"], "iteration", "expert")
    peaks = {(row["loop"], row["steps"]) for row in rows if row["part"] == "peak"}
    assert peaks == set(itertools.product(("plain", "ours"), loops.QUICK.peaks))
    assert "times the memory of 1 in all (goal 1.2 at most)" in said


def test_a_cut_run_goes_on_with_the_processes_that_are_left(
    quick_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[Any, ...]] = []
    most = [3]

    def pretend(function: Any, case: loops.Case, *arguments: Any) -> list[Row]:
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
    quick_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtt_parts, "plain_fits", lambda *_: False)
    rows, said = quick_run("loops-mtt", "--method", "mtt")
    assert {row["loop"] for row in rows if row["part"] != "peak"} == {"ours"}
    assert "may not fit" in said


def test_an_outer_iteration_is_the_published_number_of_its_parts() -> None:
    head = {"ipc": 10, "memory": "kept"}
    seconds = {"network": 0.5, "update": 2.0, "inner training": 0.25, "real gradients": 7.0}
    rows = [{**head, "part": part, "loop": loop, "seconds": number * factor}
            for part, number in seconds.items()
            for loop, factor in (("plain", 3), ("ours", 1))]  # fmt: skip
    plain, ours = loops.outer_iterations(rows, dc_parts.per_iteration(10))
    assert ours["seconds"] == 0.5 + 10 * 2.0 + 9 * 50 * 0.25
    assert plain["seconds"] == 3 * ours["seconds"]
    assert ours["speedup_over_plain"] == 3


def test_records_without_a_method_are_of_dm(tmp_path: Path) -> None:
    path = tmp_path / "loops.json"
    path.write_text((RESULTS / "loops.json").read_text())
    text = section(path)
    assert "`python -m bench.loops --name loops`" in text
    assert f"| {dm_parts.STEP} " in text
    assert "(goal 1.9)" in text
