from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cmidd.report.accuracy import accuracy_table, read_evaluation
from cmidd.storage.tensor_file import FileError
from tests.support.report_files import make_evaluation


def scored(path: Path, *scores: dict[str, Any]) -> Path:
    """An evaluation with these scores of DD-Ranking."""
    make_evaluation(path, "digits", {"a": {"mlp": (0.5, 0.52)}})
    record = json.loads(path.read_text())
    record["ddranking"] = {"compared": [], "scores": list(scores)}
    path.write_text(json.dumps(record))
    return path


def scores_of(name: str, *lrs: float, **more: Any) -> dict[str, Any]:
    mean, spread = sum(lrs) / len(lrs), {"std": 0.0125, "of_networks": list(lrs)}
    return {
        "set": name, "network": "mlp", "lrs": {"mean": mean, **spread},
        "ars": {"mean": 0.25, **spread}, "lrs_weight": 0.5, "ars_weight": 0.75, **more,
    }  # fmt: skip


def test_scores_have_a_row_for_each_set_and_network(tmp_path: Path) -> None:
    first = scored(tmp_path / "1.json", scores_of("<a>", 0.3, 0.325), scores_of("b", 0.2))
    second = scored(tmp_path / "2.json", scores_of("b", 0.2), scores_of("b", 0.1, network="vgg11"))
    page = accuracy_table([read_evaluation(path) for path in (first, second)])
    table = page.rpartition("<table>")[2]
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(\w+)</td><td>(.*?) <small>', table)
    assert rows == [
        ("&lt;a&gt;", "mlp", "0.312 ± 0.013"), ("b", "mlp", "0.200"), ("b", "vgg11", "0.100"),
    ]  # fmt: skip
    assert "n = 2" in table
    assert table.count("<td>0.5</td><td>0.75</td>") == 3
    assert "Scores of DD-Ranking" in page


def test_without_scores_nothing_is_said_of_them(tmp_path: Path) -> None:
    path = make_evaluation(tmp_path / "e.json", "digits", {"a": {"mlp": (0.5,)}})
    assert "DD-Ranking" not in accuracy_table([read_evaluation(path)])


@pytest.mark.parametrize("lrs", [None, {"mean": 0.1}, {"mean": "x", "std": 0, "of_networks": []}])
def test_damaged_scores_are_an_error_that_names_the_file(tmp_path: Path, lrs: Any) -> None:
    path = scored(tmp_path / "e.json", scores_of("a", 0.1, lrs=lrs))
    with pytest.raises(FileError, match=r"e\.json: expected the JSON that cmidd evaluate writes"):
        read_evaluation(path)
