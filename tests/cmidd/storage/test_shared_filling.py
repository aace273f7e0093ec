"""Processes that fill one file together."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cmidd.storage import shared_filling
from cmidd.storage.growing_file import GrowingFile
from cmidd.storage.lock import BusyError, locked
from cmidd.storage.shared_filling import complete, fill_together, locked_soon

COUNT = 6


def grown(path: Path) -> GrowingFile:
    """A file of numbers, new or gone on with."""
    items = {"number": torch.empty(())}
    return GrowingFile(path, "numbers", {}, COUNT, items, resume=True, what="file", lower="nothing")


def number(item: int) -> dict[str, Tensor]:
    return {"number": torch.tensor(float(item))}


def held(path: Path, item: int) -> subprocess.Popen[str]:
    """A process that makes an item, and says when it has begun."""
    words = (
        "import sys, time; from pathlib import Path; from cmidd.storage.lock import locked\n"
        f"with locked(Path({str(path)!r} + '.{item}')): print('begun', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_items_are_made_once_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    file, made = grown(tmp_path / "file"), []

    def make(item: int) -> dict[str, Tensor]:
        made.append(item)
        return number(item)

    file.put(2, number(2))
    assert fill_together(file, make, [4, 5, 0, 1, 2, 3]) == []
    assert made == [4, 5, 0, 1, 3]
    file.complete()
    assert load_file(tmp_path / "file")["number"].tolist() == list(map(float, range(COUNT)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_another_process_makes_is_left_to_it_and_taken_over_once_it_is_gone(
    tmp_path: Path,
) -> None:
    file = grown(tmp_path / "file")
    with held(tmp_path / "file", 1) as process:
        assert fill_together(file, number, range(COUNT)) == [1]
        assert file.missing() == [1]
        process.kill()
        process.wait()
    assert fill_together(file, number, range(COUNT)) == []
    assert file.missing() == []


def test_others_are_waited_for_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_filling, "_PAUSE", 0.01)
    file = grown(tmp_path / "file")
    with held(tmp_path / "file", 3) as process:
        timer = threading.Timer(0.2, process.kill)
        timer.start()
        told: list[tuple[int, str]] = []
        asked: list[int] = []
        is_done = file.is_done

        def looked(item: int) -> bool:
            asked.append(item)
            return is_done(item)

        monkeypatch.setattr(file, "is_done", looked)

        def waiting(item: int, holder: str) -> None:
            told.append((item, holder))

        found = fill_together(file, number, range(COUNT), wait=True, waiting=waiting)
        timer.join()
    assert found == []
    assert file.missing() == []
    ((item, holder),) = told
    assert item == 3
    assert holder.startswith(f"process {process.pid} on ")
    assert {*asked[2 * COUNT - 1 :]} == {3}  # after a pass it comes to what was busy alone


def test_a_lock_of_something_else_that_is_busy_is_an_error(tmp_path: Path) -> None:
    file = grown(tmp_path / "file")

    def make(item: int) -> dict[str, Tensor]:
        with held(tmp_path / "other", 0) as process:
            try:
                with locked(tmp_path / "other.0"):
                    return number(item)
            finally:
                process.kill()

    with pytest.raises(BusyError, match=r"other\.0 is being written by process"):
        fill_together(file, make, range(COUNT))


def test_one_item_is_looked_at_alone(tmp_path: Path) -> None:
    file = grown(tmp_path / "file")
    file.put(4, number(4))
    assert [file.is_done(item) for item in range(COUNT)] == [item == 4 for item in range(COUNT)]


def test_a_file_that_another_process_completes_goes_on(tmp_path: Path) -> None:
    mine, theirs = grown(tmp_path / "file"), grown(tmp_path / "file")
    assert fill_together(theirs, number, range(COUNT)) == []
    theirs.complete()
    assert fill_together(mine, number, range(COUNT)) == []
    mine.complete()
    assert grown(tmp_path / "file").missing() == []


def test_locks_that_killed_processes_left_are_gone_once_all_is_made(tmp_path: Path) -> None:
    file = grown(tmp_path / "file")
    fill_together(file, number, range(COUNT))
    for name in (".file.3.lock", ".file.lock", ".other.0.lock"):
        (tmp_path / name).touch()
    complete(file)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".file.lock", ".other.0.lock", "file"]


def test_a_lock_of_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_filling, "_PAUSE", 0.01)
    path = tmp_path / "file.0"
    with held(tmp_path / "file", 0) as process:
        monkeypatch.setattr(shared_filling, "_MOMENTS", 3)
        words = f"is being written by process {process.pid}"
        with pytest.raises(BusyError, match=words), locked_soon(path):
            pass
        monkeypatch.setattr(shared_filling, "_MOMENTS", 1000)
        threading.Timer(0.1, process.kill).start()
        began = time.monotonic()
        with locked_soon(path):
            assert time.monotonic() - began > 0.05
            with locked(path):  # which a thread may take once more
                assert os.listdir(tmp_path) == [".file.0.lock"]
