"""Ranks that end at any moment: what the others say, and how the run goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmidd.cli import main
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import read_tensors
from tests.support.forks import ENVIRONMENT, Forks, forks

ITERATIONS = 300
KILLS = 10
NETWORK = "convnet:width=8,depth=2"
SMALL = [f"--network={NETWORK}", "--batch_real=8", "--ipc=2", "--report_every=1", "--device=cpu"]
RUN = ["distill", "dm", *SMALL, f"--iterations={ITERATIONS}", "--checkpoint_every=3", "--resume"]
PATIENCE = 30.0  # seconds in which the others have to end


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Pair:
    """Two ranks, each forked from a server of its own."""

    def __init__(self, servers: list[Forks]) -> None:
        self.servers = servers

    def start(self, arguments: list[str], machines: int = 1) -> list[int]:
        shared = {
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": str(2 // machines),
            "GLOO_SOCKET_IFNAME": "lo",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        return [
            server.start(arguments, variables={**shared, "RANK": str(k), "LOCAL_RANK": str(k)})
            for k, server in enumerate(self.servers)
        ]

    def exit_codes(self, patience: float = 120.0) -> list[int]:
        """How both ended, which they have to in this time."""
        until = time.monotonic() + patience
        while not all(server.ended() for server in self.servers):
            assert time.monotonic() < until, [server.errors() for server in self.servers]
            time.sleep(0.01)
        return [server.exit_code() for server in self.servers]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("servers")
    with forks(folder / "errors0") as first, forks(folder / "errors1") as second:
        yield Pair([first, second])


def finished(out: Path) -> tuple[Tensor, str]:
    """What a run came to: its images, and the numbers of the iterations that it logged."""
    images = read_tensors(out / "checkpoint.safetensors", CHECKPOINT)[0]["images"]
    return images, str([line["iteration"] for line in read_log(out / "log.jsonl")])


@pytest.mark.slow
def test_a_rank_killed_at_any_moment_ends_the_other_and_the_run_goes_on(
    tmp_path: Path, pair: Pair
) -> None:
    out, alone = tmp_path / "run", tmp_path / "alone"
    main([*RUN, f"--out={tmp_path / 'whole'}"])
    draws = random.Random(0)
    for victim in draws.choices([0, 1], k=KILLS):
        children = pair.start([*RUN, f"--out={out}"])
        wait_for_a_line(out / "log.jsonl", pair)
        time.sleep(draws.uniform(0, 0.2))
        os.kill(children[victim], signal.SIGKILL)
        codes = pair.exit_codes(PATIENCE)
        said = pair.servers[1 - victim].errors()
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 1, said
        assert f"cmidd: rank {victim} ended without a word" in said
        assert "--resume" in said
        assert victim == 0 or not list(out.rglob("*.partial"))  # the first writes
    shutil.copytree(out, alone)
    pair.start([*RUN, f"--out={out}"])
    assert pair.exit_codes() == [0, 0]
    main([*RUN, f"--out={alone}"])
    images, lines = finished(tmp_path / "whole")
    for each in (out, alone):
        assert torch.equal(finished(each)[0], images)
        assert finished(each)[1] == lines


def wait_for_a_line(log: Path, pair: Pair) -> None:
    """Return when a run that has just started has got on."""
    text = log.read_bytes() if log.exists() else b""
    while not log.exists() or not (now := log.read_bytes()) or now == text[: len(now)]:
        assert not any(server.ended() for server in pair.servers)
        time.sleep(0.002)


@pytest.mark.slow
def test_a_rank_that_fails_tells_the_others_why(tmp_path: Path, pair: Pair) -> None:
    diverging = [f"--network={NETWORK},norm=none", *SMALL[1:], "--iterations=9", "--lr_images=1e30"]
    pair.start(["distill", "dm", *diverging, f"--out={tmp_path / 'run'}"])  # both see it
    assert pair.exit_codes(PATIENCE) == [1, 1]
    first, second = (server.errors().strip() for server in pair.servers)
    assert "The steps are too long" in first
    assert not second  # once is enough
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    pair.start(["distill", "dm", *SMALL, f"--out={tmp_path / 'other'}"], machines=2)
    assert pair.exit_codes(PATIENCE) == [1, 1]
    first, second = (server.errors().strip() for server in pair.servers)
    assert first.startswith("cmidd: --out: ")
    assert "rank 0 ended: FileExistsError: out: " in second


@pytest.mark.slow
def test_a_device_that_ranks_cannot_take_is_refused(tmp_path: Path, pair: Pair) -> None:
    for device, words in (("cuda:0", "device: expected cpu or cuda"), ("cuda", "cannot be used")):
        given = ["distill", "dm", *SMALL[:-1], f"--device={device}", f"--out={tmp_path / 'run'}"]
        pair.start(given)
        assert pair.exit_codes(PATIENCE) == [1, 1]
        assert words in pair.servers[0].errors()


@pytest.mark.slow
def test_one_process_alone_is_asked_for_the_rest(tmp_path: Path, pair: Pair) -> None:
    pair.start(["report", "runs", f"--out={tmp_path / 'page.html'}"])
    assert pair.exit_codes(PATIENCE) == [1, 1]
    assert "report runs in one process; start it without torchrun" in pair.servers[0].errors()


@pytest.mark.slow
def test_torchrun_starts_ranks_and_a_signal_saves_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "cmidd"]
    begun = subprocess.Popen(
        [*ranks, *RUN, f"--out={out}"], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not ((out / "log.jsonl").exists() and (out / "log.jsonl").stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.01)
    begun.send_signal(signal.SIGINT)
    said = begun.communicate(timeout=60)[1]
    assert said.count("cmidd: interrupted after") == 1, said
    assert (out / "checkpoint.safetensors").exists()
    subprocess.run([*ranks, *RUN, f"--out={out}"], env=ENVIRONMENT, check=True, capture_output=True)
    main([*RUN, f"--out={tmp_path / 'whole'}"])
    assert torch.equal(finished(out)[0], finished(tmp_path / "whole")[0])


THREADS = """
import os
from cmidd import ranks
with ranks.together(on_gpu=False):
    ranks.wait()
    import torch.distributed.nn.functional
for thread in os.listdir("/proc/self/task"):
    with open(f"/proc/self/task/{thread}/comm") as name:
        print(name.read(), end="")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed by Linux")
def test_no_thread_of_the_group_is_left_that_could_abort_the_end_of_python() -> None:
    alone = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0"}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ended = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={**ENVIRONMENT, **alone, **where},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python" in ended.stdout
    assert "gloo" not in ended.stdout
