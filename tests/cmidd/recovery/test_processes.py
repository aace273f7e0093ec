"""Processes that make one set together, and are killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from cmidd.cli import main
from tests.support.forks import Forks, forks
from tests.support.recovered import TEACHER

KILLS = int(os.environ.get("CMIDD_KILLS", "6"))


@pytest.mark.slow
def test_two_processes_killed_at_any_moment_end_bit_equal_to_one_that_was_not(
    tmp_path: Path,
) -> None:
    teacher, draws = tmp_path / "teacher", random.Random(0)
    main(["pretrain", f"--network={TEACHER}", "--networks=1", "--epochs=1", f"--out={teacher}",
          "--device=cpu"])  # fmt: skip
    words = ["recover", f"--teacher={teacher}", "--ipc=2", "--batch_size=2", "--iterations=30",
             "--cmi_weight=1", "--class_statistics=0.5", "--device=cpu", "--resume"]  # fmt: skip
    main([*words, f"--out={tmp_path / 'whole'}"])
    whole = (tmp_path / "whole" / "result.safetensors").read_bytes()
    shared = tmp_path / "shared"
    words.append(f"--out={shared}")
    with forks(tmp_path / "errors one") as one, forks(tmp_path / "errors two") as two:
        kills = 0
        while kills < KILLS:
            running = [(server, server.start(words)) for server in (one, two)]
            time.sleep(draws.uniform(0.1, 1.5))
            kills += sum(killed(*each) for each in running)
        for server in (one, two):
            server.start(words)
        assert [server.exit_code() for server in (one, two)] == [0, 0], one.errors() + two.errors()
    found = (shared / "result.safetensors").read_bytes()
    assert without_words(found, shared) == without_words(whole, tmp_path / "whole")
    left = sorted(path.name for path in shared.iterdir())
    assert left == ["config.yaml", "result.safetensors", "statistics.safetensors"]


def killed(server: Forks, process: int) -> bool:
    """Whether it was killed before it came to its end."""
    with contextlib.suppress(ProcessLookupError):  # where it ended just now
        os.kill(process, signal.SIGKILL)
    code = server.exit_code()
    assert code in (-signal.SIGKILL, 0), server.errors()
    return code != 0


def without_words(content: bytes, out: Path) -> bytes:
    """A file less its head, whose command names the folder."""
    assert str(out).encode() in content[: 8 + int.from_bytes(content[:8], "little")]
    return content[8 + int.from_bytes(content[:8], "little") :]
