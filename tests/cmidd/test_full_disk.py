"""Disks that are full or cannot be written, at the start and in the middle of work."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.forks import ENVIRONMENT

SMALL = "--network=convnet:width=8,depth=2"
RUN = [
    *["distill", "dm", SMALL, "--ipc=2", "--batch_real=8", "--report_every=1"],
    *["--checkpoint_every=1", "--device=cpu"],
]
FULL = "No space left on device (0.00B free there); make room, or name another place"
READ_ONLY = "Read-only file system; name another place"

# A shell in which a small disk is mounted that nobody else sees; it reads a command a line.
DISK = "mount -t tmpfs -o size=8m tmpfs {disk} && cd {disk} && echo ready && exec sh"


class Disk:
    """A disk of 8 MB, and a shell on it."""

    def __init__(self, shell: subprocess.Popen[str]) -> None:
        self.shell = shell

    def run(self, command: str) -> list[str]:
        """What a command prints, in lines."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        self.shell.stdin.write(f"({command}) 2>&1\necho; echo END\n")
        self.shell.stdin.flush()
        lines = []
        for line in self.shell.stdout:
            if line == "END\n":
                break
            lines.append(line.rstrip("\n"))
        return [line for line in lines if line]

    def cmidd(self, *words: str) -> str:
        """The last line of a command of cmidd."""
        return self.run(f"{sys.executable} -m cmidd {' '.join(words)}")[-1]

    def state(self) -> list[str]:
        """All files but the filling, and their contents."""
        return self.run("find . -type f ! -name fill -exec md5sum {} + | sort")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", DISK.format(disk=tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        if shell.stdout.readline() != "ready\n":
            pytest.skip("needs a kernel that lets users mount a disk of their own")
        yield Disk(shell)
        shell.stdin.close()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/bin/unshare").exists(), reason="needs unshare")
def test_a_disk_that_takes_nothing_is_named_and_what_was_there_stays(disk: Disk) -> None:
    assert disk.cmidd("pretrain", SMALL, "--networks=1", "--epochs=1", "--out=b") == "the bank: b"
    assert disk.cmidd(*RUN, "--iterations=3", "--out=r").startswith("try it:")
    commands = {
        "b": ["pretrain", SMALL, "--networks=2", "--epochs=1", "--out=b", "--resume"],
        "e": ["experts", SMALL, "--experts=1", "--epochs=1", "--out=e"],
        "new/r": [*RUN, "--iterations=3", "--out=new/r"],
        "r": [*RUN, "--iterations=9", "--out=r", "--resume"],
        "e.json": ["evaluate", "--random_real=1", "--epochs=1", "--out=e.json"],
    }
    before = disk.state()
    for trouble, command in (
        (FULL, "dd if=/dev/zero of=fill bs=1k"),
        (READ_ONLY, "mount -o remount,ro ."),
    ):
        disk.run(command)
        for name, words in commands.items():
            assert disk.cmidd(*words) == f"cmidd: {name}: cannot be written: {trouble}"
            assert disk.state() == before
        disk.run("mount -o remount,rw .; rm -f fill")
    assert disk.cmidd(*commands["r"]).startswith("try it:")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/bin/unshare").exists(), reason="needs unshare")
def test_a_disk_that_fills_up_in_the_middle_leaves_the_last_checkpoint(disk: Disk) -> None:
    words = " ".join([*RUN, "--iterations=20000", "--out=r"])
    said = disk.run(
        f"{sys.executable} -m cmidd {words} & while kill -0 $! && [ ! -s r/log.jsonl ]; "
        "do sleep 0.1; done; dd if=/dev/zero of=fill bs=1k 2> /dev/null; wait"
    )  # dd is quiet, as its words could begin the line of the other process
    # What was written of the file that did not fit has been removed, and so may be free.
    full = re.escape(FULL).replace(re.escape("0.00B"), r"\S+")
    assert any(re.fullmatch(rf"cmidd: r/\S+: cannot be written: {full}", x) for x in said), said
    disk.run("dd if=/dev/zero of=fill bs=1k oflag=append conv=notrunc")
    assert not disk.run("find r -name '.*.partial' -o -name .lock")
    last = disk.cmidd(*RUN, "--iterations=20000", "--out=r", "--resume")
    assert re.fullmatch(rf"cmidd: r(/config.yaml)?: cannot be written: {re.escape(FULL)}", last)
    disk.run("rm fill")
    (going_on,) = disk.run(
        f"timeout --signal=TERM 20 {sys.executable} -m cmidd {words} --resume 2> /dev/null "
        "| grep '^going on after'"
    )
    assert re.fullmatch(r"going on after \d+ of 20000 updates", going_on)
    assert not disk.run("find r -name '.*.partial'")


def test_the_numbers_of_a_disk_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cmidd.storage.output import write_text

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"^{tmp_path}/file: cannot be written: No space .*free"):
        write_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
