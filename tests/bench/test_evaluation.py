"""The benchmark of evaluation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import evaluation
from bench.harness.records import Record


@pytest.mark.slow
def test_both_ways_learn_the_same_and_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.evaluation", "--quick", "--out", str(tmp_path)])

    def here(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    monkeypatch.setattr(evaluation, "apart", here)
    evaluation.main()
    record = Record.read(tmp_path / "evaluation.json")
    found = {row["loop"]: row for row in record.rows}
    assert found.keys() == {"plain", "ours", "convolutions"}
    assert found["ours"]["weights_error"] < 1e-5
    assert all(row["seconds"] > 0 for row in record.rows)
    assert "| convolutions |" in evaluation.report(record)
