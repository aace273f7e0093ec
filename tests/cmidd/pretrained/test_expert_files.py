from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmidd.datasets import Dataset
from cmidd.networks import build_network
from cmidd.pretrained.experts import KIND, Experts, train_experts
from cmidd.storage.growing_file import CRC_OF, GrowingFile, partial_path
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from tests.support.tiny import (
    CPU,
    NETWORK,
    expert_options,
    quiet,
    tiny_bank,
    tiny_dataset,
    tiny_experts,
)

DATASET = tiny_dataset()


EXPERTS, EPOCHS = 3, 2  # of `expert_options`


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts") / "experts.safetensors"
    tiny_experts(path, DATASET)
    return path


@pytest.fixture
def experts(path: Path) -> Experts:
    return Experts.load(path)


def stopped_at(
    count: int, path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool = False, **changes: Any
) -> list[str]:
    """What is said until write number `count` fails, or until the end."""
    calls = 0
    said: list[str] = []

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                raise InterruptedError("stopped")
            return write(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "replace", failing(Path.replace))
        patch.setattr(GrowingFile, "write", failing(GrowingFile.write))
        try:
            train_experts(
                path, DATASET, expert_options(**changes), CPU, resume=resume, say=said.append
            )
        except InterruptedError:
            said.append("stopped")
    return said


def test_a_file_from_when_convolutions_had_biases_before_instance_norm_is_read(
    path: Path, experts: Experts, tmp_path: Path
) -> None:
    tensors, record = read_tensors(path, KIND)
    weight = next(build_network(NETWORK, 1, 8, 3).parameters())
    first, rest = (
        tensors["parameters"][..., : weight.numel()],
        tensors["parameters"][..., weight.numel() :],
    )
    biases = torch.full((EXPERTS, EPOCHS + 1, len(weight)), 7.0)
    older = {k: t for k, t in tensors.items() if not k.startswith(CRC_OF)}
    older["parameters"] = torch.cat([first, biases, rest], dim=2)
    write_tensors(tmp_path / "older", KIND, older, record)
    read = Experts.load(tmp_path / "older")
    for k in range(EXPERTS):
        for epoch in range(EPOCHS + 1):
            assert torch.equal(read.parameters(k, epoch), experts.parameters(k, epoch))


@pytest.mark.parametrize("together", [1, 2])
def test_experts_stopped_at_any_write_go_on_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    whole = tmp_path / "whole"
    few: dict[str, Any] = {"experts": 2, "epochs": 1}
    tiny_experts(whole, DATASET, together=together, **few)
    stops = 0
    while True:
        stops += 1
        begun = tmp_path / f"stopped at {stops}"
        before = stopped_at(stops, begun, monkeypatch, together=together, **few)
        if before[-1] != "stopped":
            break
        assert not begun.exists()
        stopped_at(0, begun, monkeypatch, resume=True, together=together, **few)
        assert begun.read_bytes() == whole.read_bytes()
        assert not partial_path(begun).exists()
    # The layout, its name; for each expert two epochs and accuracy, a call and its fsync each, and
    # the fsync of its mark; the name of all.
    assert stops - 1 == 2 + 2 * (3 * 2 + 1) + 1


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from cmidd.pretrained.experts import train_experts
from tests.support.tiny import CPU, expert_options, quiet, tiny_dataset
torch.set_num_threads(1)
options, kills = expert_options(), 0
draws = random.Random(0)
whole, *files = map(Path, sys.argv[1:])
began = time.monotonic()
train_experts(whole, tiny_dataset(), options, CPU, say=quiet)
lasts = time.monotonic() - began
for out in files:
    killed = 0
    while not (out.exists() and killed):
        if out.exists():  # it ended before it could be killed
            out.unlink()
            lasts *= 0.8
        child = os.fork()
        if child == 0:
            train_experts(out, tiny_dataset(), options, CPU, resume=True, say=quiet)
            os._exit(0)
        time.sleep(draws.uniform(0, lasts))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        killed += code != 0
    kills += killed
print(kills)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.slow
def test_experts_killed_at_any_moment_go_on_to_the_same_file(path: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{k}" for k in range(4)]
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, files)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert int(finished.stdout) >= len(files) - 1
    assert all(file.read_bytes() == path.read_bytes() for file in files)


def test_only_the_missing_experts_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_at(2 + 2 * (EPOCHS + 1 + 1) + 1 + 1, tmp_path / "experts", monkeypatch)
    said = stopped_at(0, tmp_path / "experts", monkeypatch, resume=True)
    assert said[0].endswith("experts to train: 2, steps in all: 16")
    assert said[1] == "1 of 3 experts are there already"
    assert [line.partition(":")[0] for line in said[2:]] == ["expert 2 of 3", "expert 3 of 3"]


def test_complete_experts_are_not_overwritten_and_resume_leaves_them(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=rf"out: {path} exists already; add --resume"):
        tiny_experts(path, DATASET)
    said: list[str] = []
    options = expert_options(together=2)  # not a setting of the file
    assert len(train_experts(path, DATASET, options, CPU, resume=True, say=said.append)) == EXPERTS
    assert said == [f"{EXPERTS} of {EXPERTS} experts are there already"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("dataset", "changes"),
    [(DATASET, {"epochs": 3}), (DATASET, {"seed": 1}), (tiny_dataset("other"), {})],
)
def test_resume_with_other_settings_is_refused(
    path: Path, dataset: Dataset, changes: dict[str, Any]
) -> None:
    options = expert_options(**changes)
    with pytest.raises(ValueError, match=rf"resume: {path} is a set of experts with other"):
        train_experts(path, dataset, options, CPU, resume=True, say=quiet)


def test_experts_that_are_not_complete_say_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "experts"
    stopped_at(1 + 2 * (EPOCHS + 1 + 2) + 1, out, monkeypatch)
    with pytest.raises(FileNotFoundError, match=rf"{out}: the set of experts is not complete"):
        Experts.load(out)
    partial_path(out).rename(out)
    with pytest.raises(FileError, match="only 1 of 3 are trained"):
        Experts.load(out)


def test_parameters_are_a_copy(experts: Experts) -> None:
    before = experts.parameters(1, 1)
    experts.parameters(1, 1).zero_()
    assert torch.equal(experts.parameters(1, 1), before)


@pytest.mark.parametrize(
    ("expert", "epoch", "message"),
    [
        (3, 0, "expert: expected a number from 0 to 2, got 3"),
        (-1, 0, "expert: expected a number from 0 to 2, got -1"),
        (0, 3, "epoch: expected a number from 0 to 2, got 3"),
        (0, -1, "epoch: expected a number from 0 to 2, got -1"),
    ],
)
def test_experts_and_epochs_that_are_not_there(
    experts: Experts, expert: int, epoch: int, message: str
) -> None:
    with pytest.raises(IndexError, match=message):
        experts.parameters(expert, epoch)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_reading_all_of_a_large_file_takes_the_memory_of_a_row(tmp_path: Path) -> None:
    spec, count, epochs = "convnet:width=192,depth=3", 16, 5
    size = sum(p.numel() for p in build_network(spec, 1, 8, 3).parameters())
    record = {**DATASET.describe(), "network": spec, "experts": count, "epochs": epochs}
    items = {"parameters": torch.empty(epochs + 1, size), "accuracy": torch.empty(())}
    out = tmp_path / "experts"
    parts = {"parameters": epochs + 1}
    file = GrowingFile(
        out, KIND, record, count, items, parts=parts, resume=False, what="", lower=""
    )
    for k in range(count):
        for epoch in range(epochs + 1):
            file.write(k, {"parameters": torch.full((size,), float(k * 10 + epoch))}, part=epoch)
        file.put(k, {})
    file.complete()
    experts = Experts.load(out)
    experts.parameters(0, 0)
    before, most = resident(), 0
    for k in range(count):
        for epoch in range(epochs + 1):
            row = experts.parameters(k, epoch)
            assert row.eq(k * 10 + epoch).all()
            most = max(most, resident())
    assert file.size > 200e6
    assert most - before < 8 * 4 * size


def test_a_file_that_is_not_what_it_says_is_an_error(path: Path, tmp_path: Path) -> None:
    tensors, record = read_tensors(path, KIND)
    other = tmp_path / "other"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"experts": 4}, "expected .* as its record says, got"),
        ({"epochs": 1}, "expected .* as its record says, got"),
        ({"network": "convnet:width=5,depth=1"}, "expected .* as its record says, got"),
        ({"shape": [3, 8, 8]}, "expected .* as its record says, got"),
        ({"network": f"{NETWORK},norm=batch"}, "expected the record of a set of experts"),
        ({"network": "resnet99"}, "expected the record of a set of experts"),
        ({"network": None}, "expected the record of a set of experts"),
        ({"epochs": "two"}, "expected the record of a set of experts"),
        ({"shape": []}, "expected the record of a set of experts"),
    ]
    for change, message in changes:
        write_tensors(other, KIND, tensors, {**record, **change})
        with pytest.raises(FileError, match=rf"{other}: {message}"):
            Experts.load(other)
    for name in ("parameters", "accuracy", "trained"):
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        write_tensors(other, KIND, rest, record)
        with pytest.raises(FileError, match=rf"{other}: expected .* as its record says, got"):
            Experts.load(other)
    doubles = {**tensors, "parameters": tensors["parameters"].double()}
    write_tensors(other, KIND, doubles, record)
    with pytest.raises(FileError, match=rf"{other}: expected .*'F32'.* got .*'F64'"):
        Experts.load(other)
    del record["experts"]
    write_tensors(other, KIND, tensors, record)
    with pytest.raises(FileError, match=rf"{other}: expected the record .*KeyError\('experts'\)"):
        Experts.load(other)


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30, deadline=None)
def test_a_file_cut_short_is_an_error(
    path: Path, tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    content = path.read_bytes()
    short = tmp_path_factory.mktemp("short") / "experts"
    short.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileError, match=rf"{short}: expected a safetensors file with a set of"):
        Experts.load(short)


def test_a_file_that_is_cut_short_or_gone_while_it_is_read_is_an_error(
    path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "experts"
    shutil.copy(path, copy)
    experts = Experts.load(copy)
    os.truncate(copy, copy.stat().st_size // 2)
    with pytest.raises(FileError, match=rf"{copy}: expected a safetensors file"):
        experts.parameters(0, 0)
    copy.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{copy}: expected a file with a set of experts"):
        experts.parameters(0, 0)


def test_other_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/none: expected a file with a set"):
        Experts.load(tmp_path / "none")
    tiny_bank(tmp_path / "bank", DATASET, networks=1, epochs=1)
    with pytest.raises(FileError, match="expected a set of experts, got a bank of networks"):
        Experts.load(tmp_path / "bank")
