"""Two processes that are told to write the same thing at the same time."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmidd.storage.tensor_file import record_of
from tests.support.forks import Forks, forks

TIMES = int(os.environ.get("CMIDD_TIMES", "2"))
SMALL = "convnet:width=8,depth=2"
# The arguments, and those that make the same work go on.
COMMANDS: dict[str, list[str]] = {
    "distill dm": [
        *["--ipc=2", "--iterations=100", "--report_every=1", "--checkpoint_every=7"],
        *["--batch_real=8", f"--network={SMALL}"],
    ],
    "pretrain": ["--networks=2", "--epochs=3", f"--network={SMALL}", "--resume"],
    "evaluate": ["--random_real=2", "--epochs=60", "--repeats=2", f"--networks={SMALL}"],
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Forks]]:
    folder = tmp_path_factory.mktemp("servers")
    with forks(folder / "one") as one, forks(folder / "two") as two:
        yield [one, two]


def seeds_in(out: Path) -> set[Any]:
    """The seeds that the files tell of."""
    if out.is_file():
        content = out.read_bytes()
        return {json.loads(content)["seed"] if content[:1] == b"{" else record_of(out)["seed"]}
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(100))
    return {
        yaml.safe_load((out / "config.yaml").read_text())["seed"],
        record_of(out / "result.safetensors")["seed"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_one_wins_and_the_other_says_so(command: str, tmp_path: Path, servers: list[Forks]) -> None:
    out = tmp_path / "in here" / "out"
    common = [*command.split(), f"--out={out}", "--device=cpu", *COMMANDS[command]]
    for _ in range(TIMES):
        numbers = [server.start([*common, f"--seed={seed}"]) for seed, server in enumerate(servers)]
        codes = [server.exit_code() for server in servers]
        assert sorted(codes) == [0, 1]
        winner, loser = codes.index(0), codes.index(1)
        assert re.search(
            rf"^cmidd: --out: {out} is being written by process {numbers[winner]} on \S+ since .*; "
            "wait until it ends, or name another$",
            servers[loser].errors(),
            re.MULTILINE,
        )
        assert seeds_in(out) == {winner}
        assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".lock")]
        shutil.rmtree(out.parent)
