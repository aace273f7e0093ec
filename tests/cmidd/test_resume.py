from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.methods.dm import DM, DMDraws
from cmidd.options.cmi import CMIOptions
from cmidd.seeds import STREAMS
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import RunFolder
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from tests.support.tiny import (
    CONFIG,
    DM_OPTIONS,
    DSA_OPTIONS,
    IDC_OPTIONS,
    IDM_OPTIONS,
    OPTIONS,
    iid_options,
    mtt_options,
    ncfm_options,
    tiny_dataset,
    tiny_experts,
    tiny_run,
)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", range(2, 8))
def test_a_loss_or_image_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float, where: str, at: int
) -> None:
    match, iterations = DM.loss_and_gradient, itertools.count()

    def failing(self: DM, images: Tensor, draws: DMDraws) -> tuple[Tensor, Tensor]:
        loss, gradient = match(self, images, draws)
        if next(iterations) >= at:
            (loss if where == "loss" else gradient).fill_(bad)
        return loss, gradient

    monkeypatch.setattr(DM, "loss_and_gradient", failing)
    options = replace(OPTIONS, report_every=4, checkpoint_every=2)
    with pytest.raises(FloatingPointError, match=r"iteration .*(nan|inf).* smaller lr_images"):
        tiny_run(tmp_path, options)
    monkeypatch.undo()
    tensors, record = read_tensors(tmp_path / "checkpoint.safetensors", CHECKPOINT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert record["iteration"] == at // 2 * 2
    assert not (tmp_path / "result.safetensors").exists()
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    expected = tiny_run(tmp_path / "whole", options)
    assert torch.equal(tiny_run(tmp_path, options, resume=True).images, expected.images)


class StopError(Exception):
    """In the place of a kill."""


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory, bank_file: Path) -> dict[str, Any]:
    """The options of every method, tiny."""
    experts = tmp_path_factory.mktemp("resume") / "experts"
    tiny_experts(experts, tiny_dataset())
    return {"dm": DM_OPTIONS, "dsa": DSA_OPTIONS, "mtt": mtt_options(experts), "idc": IDC_OPTIONS,
            "iid": iid_options(bank_file), "idm": IDM_OPTIONS,
            "ncfm": ncfm_options(bank_file)}  # fmt: skip


def run_until(count: int, path: Path, patch: pytest.MonkeyPatch, *run: Any, **more: Any) -> bool:
    """Whether a run was stopped at its write number `count`."""
    calls = 0

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count:
                raise StopError
            return write(*arguments)

        return call

    with patch.context() as within:
        within.setattr(os, "fsync", failing(os.fsync))
        within.setattr(Path, "replace", failing(Path.replace))
        within.setattr(RunFolder, "log", failing(RunFolder.log))
        try:
            tiny_run(path, *run, **more)
        except StopError:
            return True
    return False


@pytest.mark.parametrize(
    ("name", "momentum"),
    [
        ("dm", 0.5),
        ("dm", 0.0),
        *(
            pytest.param(name, 0.5, marks=pytest.mark.slow)
            for name in ("dsa", "mtt", "idc", "idm", "iid", "ncfm")
        ),
        pytest.param("mtt", 0.0, marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_any_write_goes_on_to_the_same_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cmi: CMIOptions,
    methods: dict[str, Any],
    name: str,
    momentum: float,
) -> None:
    run: Any = replace(OPTIONS, momentum=momentum, init="real"), cmi
    method = name, methods[name]
    tiny_run(tmp_path / "whole", *run, method=method)
    whole = [(tmp_path / "whole" / n).read_bytes() for n in ("result.safetensors", "log.jsonl")]
    stops = 0
    while run_until(stops + 1, path := tmp_path / f"{stops + 1}", monkeypatch, *run, method=method):
        stops += 1
        tiny_run(path, *run, method=method, resume=True)
        assert [(path / n).read_bytes() for n in ("result.safetensors", "log.jsonl")] == whole
        assert not list(path.glob(".*.partial"))
    # Configuration, three checkpoints (with the log before them), result; four lines of the log.
    assert stops == 3 + 3 * 4 + 3 + 4


def test_a_resumed_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    draw = DM.draw

    def counted(self: DM, iteration: int, update: int) -> DMDraws:
        steps.append(iteration)
        if len(steps) == 8:
            raise StopError
        return draw(self, iteration, update)

    monkeypatch.setattr(DM, "draw", counted)
    with pytest.raises(StopError):
        tiny_run(tmp_path)
    tiny_run(tmp_path, resume=True)
    assert steps == [*range(8), 6, 7]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny_run(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.delattr(DM, "loss_and_gradient")
    said: list[str] = []
    after = tiny_run(tmp_path, resume=True, say=said.append)
    assert torch.equal(after.images, before.images)
    assert said == [f"{tmp_path} is finished already"]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"momentum of images": torch.zeros(6, 1, 8, 8)},
        {"images": torch.zeros(1, 1, 8, 8)},
        {"images": torch.zeros(6, 1, 8, 8), "momentum of images": torch.zeros(6, 1, 8, 1)},
    ],
)
def test_a_checkpoint_of_other_images_is_an_error_and_stays(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    RunFolder(tmp_path, CONFIG, resume=False).load_checkpoint()
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, CHECKPOINT, tensors, {"iteration": 3, "log_bytes": 0, "streams": STREAMS})
    before = path.read_bytes()
    with pytest.raises(FileError, match=rf"{tmp_path}: expected a checkpoint with"):
        tiny_run(tmp_path, resume=True)
    assert path.read_bytes() == before
