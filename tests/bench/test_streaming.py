"""The benchmark of a metric over a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.harness.records import Record
from bench.kernels import streaming


@pytest.mark.slow
def test_speed_and_memory_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--out", str(tmp_path)])

    def here(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    monkeypatch.setattr(streaming, "apart", here)
    streaming.main()
    record = Record.read(tmp_path / "streaming.json")
    found = {row["contender"]: row for row in record.rows if "contender" in row}
    assert found.keys() == {streaming.VALUE, streaming.METRIC, streaming.NCMI}
    assert 0 < found[streaming.NCMI]["of_value_rate"] < found[streaming.VALUE]["of_value_rate"]
    memory = record.rows[-1]
    assert memory["rows"] >= 5000
    assert memory["held_first"] <= memory["held_last"] < memory["held_first"] + (64 << 20)
    assert abs(memory["error"]) < 1e-6
    assert "after the first batch" in streaming.report(record)
