from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cmidd.storage.lock import BusyError, busy_first, locked

# Takes the lock of a path, says so, and holds it until its input ends.
HOLDER = """
import sys
from pathlib import Path
from cmidd.storage.lock import locked
with locked(Path(sys.argv[1]), folder=sys.argv[2] == "folder"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path, kind: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("killed", [False, True])
def test_another_process_is_named_until_it_ends(tmp_path: Path, kind: str, killed: bool) -> None:
    path, is_folder = tmp_path / "new" / "run", kind == "folder"
    with holder(path, kind) as child:
        message = (
            rf"out: {re.escape(str(path))} is being written by process {child.pid} on \S+ since "
            r"[-\d]+ [:\d]+; wait until it ends, or name another"
        )
        for _ in range(2):
            with pytest.raises(BusyError, match=message), locked(path, folder=is_folder):
                pass
        if killed:
            child.kill()
        else:
            child.communicate("")
        child.wait()
    with locked(path, folder=is_folder):
        assert len(list(tmp_path.rglob("*lock"))) == 1
    assert not list(tmp_path.rglob("*lock"))
    assert (tmp_path / "new").exists() == killed  # made by the one that was killed


def test_folders_stay_that_were_there_or_hold_something(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", folder=True):
        pass
    assert (tmp_path / "mine").exists()
    with locked(tmp_path / "new" / "run", folder=True):
        (tmp_path / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("system_has_locks", [True, False])
def test_a_thread_may_take_its_lock_again_and_another_may_not(
    tmp_path: Path, request: pytest.FixtureRequest, system_has_locks: bool
) -> None:
    if not system_has_locks:
        request.getfixturevalue("no_locks")
    found: list[BaseException] = []

    def other() -> None:
        try:
            with locked(tmp_path / "file"):
                pass
        except BusyError as error:
            found.append(error)

    with locked(tmp_path / "file"), locked(tmp_path / "file"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert f"is being written by process {os.getpid()}" in str(found[0])
    with locked(tmp_path / "file"):
        pass


def test_two_ways_to_name_a_place_are_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with holder(tmp_path / "run", "folder") as child:
        with (
            pytest.raises(BusyError, match=str(child.pid)),
            locked(tmp_path / "link" / "run", folder=True),
        ):
            pass
        child.communicate("")


def test_who_is_interrupted_while_it_asks_leaves_the_lock_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with holder(tmp_path / "file", "file") as child:
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", interrupt)
            with pytest.raises(KeyboardInterrupt), locked(tmp_path / "file"):
                pass
        with pytest.raises(BusyError, match=str(child.pid)), locked(tmp_path / "file"):
            pass
        child.communicate("")


@pytest.mark.usefixtures("no_locks")
def test_without_locks_of_the_system_the_file_says_who_is_there(tmp_path: Path) -> None:
    path, lock = tmp_path / "file", tmp_path / ".file.lock"
    with locked(path):
        assert f"process {os.getpid()} on" in lock.read_text()
    assert not lock.exists()
    with subprocess.Popen(["sleep", "60"]) as child:
        there = f"process {child.pid} on {os.uname().nodename} since yesterday"
        lock.write_text(there)
        with (
            pytest.raises(BusyError, match=rf"written by {there} \(delete {lock} if"),
            locked(path),
        ):
            pass
        child.kill()
    with locked(path):  # that process is gone
        assert f"process {os.getpid()} on" in lock.read_text()
    lock.write_text("process 1 on another-machine since yesterday")
    with pytest.raises(BusyError, match="process 1 on another-machine"), locked(path):
        pass
    assert lock.exists()


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, folder: bool) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "run"
    message = rf"{path}: cannot be written: (Not a directory|File exists)"
    with pytest.raises(OSError, match=message), locked(path, folder=folder):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_takes_no_files_is_named() -> None:
    message = r"/proc/self/file: cannot be written: (No such file|Permission)"
    with pytest.raises(OSError, match=message), locked(Path("/proc/self/file")):
        pass


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_still_being_made_is_busy_and_not_merely_there(
    tmp_path: Path, folder: bool
) -> None:
    def refused() -> None:
        with busy_first(tmp_path / "run", folder=folder):
            raise FileExistsError("holds a run already")

    (tmp_path / "run").mkdir()
    lock = tmp_path / ("run/.lock" if folder else ".run.lock")
    with pytest.raises(FileExistsError, match="holds a run already"):
        refused()
    lock.write_text("process 1 on elsewhere since then")  # left behind: nobody holds it
    with pytest.raises(FileExistsError, match="holds a run already"):
        refused()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="is being written by process 1 on elsewhere"):
            refused()
