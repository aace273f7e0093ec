"""What the loops ask of a GPU keeps within its budget: counted, without one."""

from __future__ import annotations

import pytest

from bench.budget import report
from bench.budget.as_on_gpu import metered
from bench.budget.budgets import BUDGETS, GOALS, excess
from bench.budget.count import Count
from bench.budget.loops import LOOPS, Rig, cmi
from bench.harness.records import RESULTS, Record
from tests.support.convolutions import Convolutions


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("budget"))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_keeps_within_its_budget(rig: Rig, loop: str) -> None:
    counts = rig.count(loop)
    assert counts.keys() == BUDGETS[loop].keys()
    beyond = [line for part, count in counts.items() for line in excess(loop, part, count)]
    assert not beyond, "\n".join(["beyond the budget", *beyond])


@pytest.mark.parametrize("loop", ["DC, ipc 10", "DSA, ipc 10", "IDC, ipc 10"])
def test_convolutions_of_updates_that_match_gradients_have_one_group(rig: Rig, loop: str) -> None:
    with Convolutions() as convolutions:
        rig.count(loop)
    assert convolutions.went_backward
    assert {each.groups for each in convolutions.seen} == {1}


def test_what_exceeds_a_budget_is_named_with_the_lines_that_do_most() -> None:
    budget = BUDGETS["DSA, ipc 10"]["update"]
    count = Count(
        launches=budget.launches + 1,
        calls=budget.calls + 4,
        copies=budget.copies + 2,
        waits=budget.waits + 3,
    )
    count.lines["copies in cmidd/augment.py:1 _rows"] = 30
    count.operations["aten::clone"] = 70
    assert excess("DSA, ipc 10", "update", count) == [
        f"DSA, ipc 10, update: {budget.launches + 1} launches, budget {budget.launches}",
        f"DSA, ipc 10, update: {budget.calls + 4} calls, budget {budget.calls}",
        f"DSA, ipc 10, update: {budget.copies + 2} copies, budget {budget.copies}",
        f"DSA, ipc 10, update: {budget.waits + 3} waits, budget {budget.waits}",
        "    30 x copies in cmidd/augment.py:1 _rows",
        "    70 x aten::clone",
    ]
    assert (
        excess("DSA, ipc 10", "update", Count(launches=budget.launches, copies=budget.copies)) == []
    )
    moved = Count(bytes=budget.megabytes * 10**6 + 1, flops=budget.gigaflops * 10**9 + 1)
    lines = excess("DSA, ipc 10", "update", moved)
    assert [line.split(", budget")[0].split()[-1] for line in lines] == ["megabytes", "gigaflops"]


def test_goals_are_of_what_is_counted() -> None:
    assert BUDGETS.keys() == LOOPS.keys()
    for loop, part in GOALS:
        assert part in BUDGETS[loop]


def test_chunks_that_are_not_counted_ask_for_as_much(rig: Rig) -> None:
    with metered() as rig.meter:
        three, all_three = cmi(30, 50, rig)["call"], cmi(30, 50, rig, at_most=3)["call"]
        assert three == all_three
        assert cmi(10, 50, rig)["call"].launches * 2 < three.launches


def test_the_record_has_every_part_and_its_page_the_goals() -> None:
    record = Record.read(RESULTS / "budget.json")
    parts = {(row["loop"], row["part"]) for row in record.rows}
    assert parts == {(loop, part) for loop, budgets in BUDGETS.items() for part in budgets}
    page = report.report(record)
    assert "(1,500)" in page
    assert "cmidd/parcel.py" in page
