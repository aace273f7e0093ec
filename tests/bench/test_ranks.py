"""The benchmark of ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import ranks
from bench.harness.records import Record


@pytest.mark.slow
def test_one_rank_and_two_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["bench.ranks", "--quick", "--method", "dm", "mtt", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    ranks.main()
    record = Record.read(tmp_path / "ranks.json")
    found = {(row["method"], row["ranks"]): row for row in record.rows}
    assert found.keys() == {("dm", 1), ("dm", 2), ("mtt", 1), ("mtt", 2)}
    assert all(row["seconds"] > 0 for row in record.rows)
    images = 4 * 20 * 3 * 16 * 16
    assert found["dm", 2]["sent"] == 8 + images + 8  # the sums of an update, and whether to stop
    assert found["mtt", 2]["sent"] > images + 16  # weights too
    assert found["dm", 1]["sent"] == 0
    assert "MTT" in ranks.report(record)
