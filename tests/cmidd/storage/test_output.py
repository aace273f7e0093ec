from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cmidd.storage.output import check_writable, write_text


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    for _ in range(2):
        check_writable(tmp_path / "a" / "b", "out")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"out: .*a is a file; expected a folder"):
        check_writable(tmp_path / "a", "out")
    with pytest.raises(OSError, match=r"out: nothing can be written to .*a/b \(Not a directory\)"):
        check_writable(tmp_path / "a" / "b", "out")
    assert (tmp_path / "a").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cmidd.storage.output.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match=r"png: nothing .* \(No space left on device\); name another"):
        check_writable(tmp_path, "png")


def test_writing_that_a_signal_ends_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]
