"""The benchmark of recovery at scale."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import scale
from bench.harness.records import Record
from tests.support.threads import one_thread

__all__ = ["one_thread"]  # a fixture of the test below


def here(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    """In this process, where torch is imported already."""
    return function(*arguments)


def test_every_part_is_measured(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "apart", here)
    monkeypatch.setattr(sys, "argv", [
        *["bench.scale", "--classes=4", "--pictures=6", "--pixels=16", "--epochs=1", "--few=1"],
        *["--network=resnet18:width=4,norm=batch", "--iterations=2", "--ipc", "2", "3"],
        *["--batch-size=4", "--student-epochs=1", f"--folder={tmp_path / 'work'}"],
        f"--out={tmp_path}",
    ])  # fmt: skip
    scale.main()
    record = Record.read(tmp_path / "scale.json")
    found = [(row["part"], row["classes"], row.get("ipc")) for row in record.rows]
    assert found == [
        ("draw the pictures", 4, None),
        ("pretrain", 4, None),
        ("recover from rded", 4, 2),
        *[("recover from noise", *case) for case in ((4, 2), (4, 3), (2, 2))],
        *[("relabel", 4, 2), ("evaluate", 4, 2), ("evaluate with soft labels", 4, 2)],
    ]
    assert record.rows[0]["images"] == len(list((tmp_path / "work/tree/train").rglob("*.jpg")))
    assert all(row["peak"] > 2**20 for row in record.rows[1:])
    assert all(0 < row["idle"] < 1 for row in record.rows[1:3]), "pictures are decoded for both"
    made = tmp_path / "work/tree-2-2-rded"
    assert record.rows[2]["disk"] == (made / "result.safetensors").stat().st_size
    assert record.rows[6]["disk"] == (made / "labels.safetensors").stat().st_size
    assert all(0 <= row["accuracy"] <= 1 for row in record.rows if "accuracy" in row)
    assert "waiting for pictures" in scale.report(record)


def test_pictures_are_of_many_sizes_and_the_same_again(tmp_path: Path) -> None:
    from PIL import Image

    sizes = set()
    for name in ("one", "two"):
        assert scale.draw_tree(tmp_path / name, 2, 5, 20) > 0
        for path in (tmp_path / name).rglob("*.jpg"):
            with Image.open(path) as picture:
                sizes.add(picture.size)
    assert len(sizes) > 10
    for path in (tmp_path / "one").rglob("*.jpg"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()
