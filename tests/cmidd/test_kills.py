from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cmidd.cli import main
from tests.support.forks import ENVIRONMENT, Forks, forks

ITERATIONS = 40
NETWORK = "convnet:width=8,depth=2"
# Kills, and what is special about the run.
METHODS: dict[str, tuple[int, list[str]]] = {
    "dm": (20, ["--batch_real=8", f"--network={NETWORK}", "--mim_weight=1", "--mim_batch_real=4"]),
    "dsa": (6, ["--batch_real=8", f"--network={NETWORK}", "--inner_epochs=1"]),
    "idc": (6, ["--batch_real=8", f"--network={NETWORK}", "--inner_steps=2", "--images_net=64"]),
    "iid": (6, ["--batch_real=8", f"--network={NETWORK}"]),
    "idm": (6, ["--batch_real=8", f"--network={NETWORK}", "--push_interval=7", "--queue_size=5",
                "--factor=2", "--steps_net=2", "--batch_net=32"]),
    "ncfm": (6, ["--batch_real=8", "--frequencies=64", "--patience=2"]),
    "mtt": (6, ["--student_steps=2", "--expert_epochs=1", "--max_start_epoch=2", "--batch_syn=7"]),
}  # fmt: skip
TIME_LIMIT = 60  # seconds that a process may take to come to the moment at which it is killed
FILES = ("result.safetensors", "log.jsonl", "config.yaml")


def changes(path: Path) -> Iterator[int]:
    """How often `path` was seen to be replaced, at every look."""
    seen: set[int | None] = set()
    while True:
        seen.add(path.stat().st_mtime_ns if path.exists() else None)
        yield len(seen) - 1


def lines(path: Path) -> Iterator[int]:
    """How many lines `path` has, at every look."""
    while True:
        yield path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(moment: str, out: Path, draws: random.Random, over: Callable[[], bool]) -> None:
    """Return at a moment of the run in `out`, or when it is over."""
    latest = {"start": 0.5, "loop": 0.03, "end": 0.05}[moment]  # seconds after that
    if moment != "start":
        looks = changes(out / "checkpoint.safetensors")
        expected = draws.randint(1, 3)
        if moment == "end":
            looks, expected = lines(out / "log.jsonl"), ITERATIONS - draws.randint(0, 3)
        began = time.monotonic()
        while next(looks) < expected and not over():
            assert time.monotonic() - began < TIME_LIMIT
            time.sleep(0.0005)
    time.sleep(draws.uniform(0, latest))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_any_moment_ends_bit_equal_to_one_that_was_not(
    method: str, tmp_path: Path
) -> None:
    with forks(tmp_path / "errors") as server:
        kill_and_go_on(method, tmp_path, server)


def kill_and_go_on(method: str, tmp_path: Path, server: Forks) -> None:
    bank, experts, out = tmp_path / "bank", tmp_path / "experts", tmp_path / "run"
    limit, special = METHODS[method]
    main(["pretrain", f"--network={NETWORK}", "--networks=2", "--epochs=1", f"--out={bank}"])
    if method == "iid":
        special = [*special, f"--centre_bank={bank}"]
    if method == "mtt":
        made = [f"--network={NETWORK}", "--experts=2", "--epochs=2", f"--out={experts}"]
        main(["experts", *made])
        special = [*special, f"--experts={experts}"]
    if method == "ncfm":
        special = [*special, f"--matching_bank={bank}"]
    arguments = [
        *["distill", method, "--resume", f"--out={out}", f"--bank={bank}", "--cmi_weight=1"],
        *["--ipc=2", f"--iterations={ITERATIONS}", "--report_every=1", "--checkpoint_every=3"],
        *["--device=cpu", *special],
    ]
    command = [sys.executable, "-m", "cmidd", *arguments]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
    whole = [(out / name).read_bytes() for name in FILES]
    shutil.rmtree(out)
    draws = random.Random(0)
    kills = 0
    for moment in itertools.cycle(["start", "loop", "loop", "start", "loop", "end", "anew"]):
        if moment != "anew":
            child = server.start(arguments)
            wait_for(moment, out, draws, server.ended)
            with contextlib.suppress(ProcessLookupError):  # where it ended just now
                os.kill(child, signal.SIGKILL)
            code = server.exit_code()
            assert code in (-signal.SIGKILL, 0)
            kills += code != 0
        if moment == "anew" or kills == limit:
            server.start(arguments)
            assert server.exit_code() == 0
            assert [(out / name).read_bytes() for name in FILES] == whole
            shutil.rmtree(out)
        if kills == limit:
            return
