"""The benchmark of norm, activation and pooling."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import block
from bench.harness.records import Record


@pytest.mark.slow
def test_every_contender_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.block", "--quick", "--out", str(tmp_path)])
    block.main()
    record = Record.read(tmp_path / "block.json")
    found = {(row["order"], row["contender"]): row for row in record.rows}
    for order in block.ORDERS:
        compiled = {block.COMPILED} if order != "second order" else set()
        expected = {block.OURS, block.TORCH, block.COPY} | compiled
        assert {name for each, name in found if each == order} == expected
    assert all(row["seconds"] > 0 for row in record.rows)
    assert found["gradient", block.OURS]["kept_bytes"] == 0
    assert found["gradient", block.TORCH]["kept_bytes"] > 0
    assert all(
        (row["of_copy_rate"] is not None) == (by == block.OURS) for (_, by), row in found.items()
    )
    assert "| of a copy's rate |" in block.report(record)
    assert "| second order |" in block.report(record)
