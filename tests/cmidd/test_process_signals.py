"""Commands that a signal ends at any moment: what they say, what they leave, how they go on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.forks import Forks, forks

MOMENTS = int(os.environ.get("CMIDD_MOMENTS", "2"))
"""Signals that each command gets; from four on, half as many in pairs."""
SMALL = "--network=convnet:width=8,depth=2"
# What is begun, the arguments, and the files that have to be the same in the end.
COMMANDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "distill dm": (
        ["--ipc=2", "--iterations=60", "--report_every=1", SMALL, "--batch_real=8"],
        ("result.safetensors", "log.jsonl", "config.yaml"),
    ),
    "distill dsa": (
        [
            *["--ipc=2", "--iterations=4", "--outer_steps=4", "--inner_epochs=5"],
            *["--batch_real=8", SMALL],
        ],
        ("result.safetensors", "log.jsonl", "config.yaml"),
    ),
    "distill idc": (
        [
            *["--ipc=2", "--iterations=4", "--inner_steps=4", "--images_net=256"],
            *["--batch_real=8", SMALL],
        ],
        ("result.safetensors", "log.jsonl", "config.yaml"),
    ),
    "pretrain": (["--networks=2", "--epochs=2", SMALL], ("",)),
    "experts": (["--experts=2", "--epochs=2", SMALL], ("",)),
    "evaluate": (
        ["--random_real=2", "--epochs=60", "--repeats=3", f"--networks={SMALL[10:]}"],
        ("",),
    ),
}


def contents(out: Path, names: tuple[str, ...]) -> list[bytes]:
    return [(out / name).read_bytes() for name in names]


def leftovers(out: Path) -> list[str]:
    """Files of unfinished work."""
    ends = (".partial", ".training", ".lock")
    return [path.name for path in out.parent.rglob("*") if path.name.endswith(ends)]


def check_what_it_says(text: str, out: Path) -> None:
    last = text.strip().splitlines()[-1]
    assert last.startswith("cmidd: interrupted")
    assert "--resume" in last
    assert "go on with: cmidd" in last
    if "begin again" in last:
        return
    kept = [out / "checkpoint.safetensors", *out.parent.glob("out.*.training")]
    assert any(path.exists() for path in (*kept, out, out.with_name("out.partial")))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("server") / "errors") as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_any_moment_leaves_what_goes_on_to_the_same_files(
    command: str, tmp_path: Path, server: Forks
) -> None:
    out = tmp_path / "in here" / "out"
    special, names = COMMANDS[command]
    arguments = [*command.split(), f"--out={out}", "--resume", "--device=cpu", *special]
    draws = random.Random(command)
    began = time.monotonic()
    server.start(arguments)
    assert server.exit_code() == 0
    lasts = time.monotonic() - began
    whole = contents(out, names)
    shutil.rmtree(out.parent)
    for number in [signal.SIGINT, signal.SIGTERM] * (MOMENTS // 2):
        code = signalled(server, arguments, [number], draws.uniform(0.02, lasts))
        assert code in (0, 128 + number, -number), server.errors()
        if code == 128 + number:
            check_what_it_says(server.errors(), out)
        if code == 0:
            assert contents(out, names) == whole
            shutil.rmtree(out.parent)
    finish(server, arguments, out, names, whole)
    for number in [signal.SIGINT, signal.SIGTERM] * (MOMENTS // 4):
        pair = [number, number]
        code = signalled(server, arguments, pair, draws.uniform(0.02, lasts / 2))
        assert code in (0, 128 + number, -number), server.errors()
    finish(server, arguments, out, names, whole)


def signalled(server: Forks, arguments: list[str], numbers: Sequence[int], after: float) -> int:
    """The exit code of a process that gets signals, a moment between them."""
    child = server.start(arguments, one_request=0.0)
    time.sleep(after)
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):  # where it has just ended
            os.kill(child, number)
        time.sleep(0.005)
    return server.exit_code()


def finish(
    server: Forks, arguments: list[str], out: Path, names: tuple[str, ...], whole: list[bytes]
) -> None:
    """Go on to the end, which is the same."""
    server.start(arguments)
    assert server.exit_code() == 0
    assert contents(out, names) == whole
    assert not [name for name in leftovers(out) if not name.startswith(".")]
    shutil.rmtree(out.parent)
