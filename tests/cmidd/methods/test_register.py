"""A method that stands outside the package: registered, run and resumed without another edit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.cli import main
from cmidd.distill import DistillOptions, distill
from cmidd.methods import METHODS, Method, MethodEntry, Published, register
from cmidd.regularization import CMIOptions
from cmidd.storage.run_folder import RunFolder
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CONFIG, CPU, quiet, tiny_dataset


@dataclass(frozen=True)
class ShrinkOptions:
    """What the method can be told.

    Args:
        share: of the images that a step takes away; default: a tenth
    """

    share: float | None = None


class Shrink(Method):
    """Makes images smaller."""

    spec = "mlp"

    def __init__(self, _dataset: Any, _labels: Tensor, options: ShrinkOptions, *_: Any) -> None:
        assert options.share is not None
        self.share = options.share

    def step(
        self,
        images: Tensor,
        iteration: int,  # noqa: ARG002
        update: int = 0,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        return self.share * images.detach().square().sum() / 2, self.share * images.detach()


def published(_dataset: Any, ipc: int) -> Published:
    loop = {"iterations": 6, "init": "real", "lr_images": 1.0 / ipc, "report_every": 1,
            "checkpoint_every": 2}  # fmt: skip
    return Published(loop, {"share": 0.1}, {"epochs": 7}, origin="as ever")


@pytest.fixture(autouse=True)
def _shrink() -> Iterator[None]:
    register("shrink", MethodEntry(Shrink, ShrinkOptions, published))
    yield
    del METHODS["shrink"]


def command(out: Path, *more: str) -> SyntheticSet:
    main(["distill", "shrink", "--ipc=2", "--device=cpu", f"--out={out}", *more])
    return SyntheticSet.load(out / "result.safetensors")


def test_it_runs_by_the_command_with_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = command(tmp_path)
    assert "share 0.1 (as ever)" in capsys.readouterr().out
    assert result.record["method"] == "shrink"
    assert result.record["evaluation"]["epochs"] == 7
    assert result.images.abs().max() < 10


def test_its_file_may_lack_a_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__doc__", None)
    assert command(tmp_path).record["method"] == "shrink"


def test_it_runs_from_python(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG, resume=False)
    options = DistillOptions(ipc=2)
    result = distill(
        "shrink", tiny_dataset(), options, CMIOptions(), ShrinkOptions(0.5), folder, CPU, say=quiet
    )
    assert result.record["method"] == "shrink"


def test_it_goes_on_after_a_stop_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = command(tmp_path / "whole")
    step = Shrink.step

    def stopping(self: Shrink, images: Tensor, iteration: int, update: int = 0) -> Any:
        if iteration == 3:
            raise KeyboardInterrupt
        return step(self, images, iteration, update)

    with monkeypatch.context() as patch:
        patch.setattr(Shrink, "step", stopping)
        with pytest.raises(SystemExit, match="--resume"):
            command(tmp_path / "cut")
    assert torch.equal(command(tmp_path / "cut", "--resume").images, whole.images)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="name: a method shrink exists already"):
        register("shrink", METHODS["shrink"])


def test_an_unknown_name_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG, resume=False)
    with pytest.raises(ValueError, match="method: expected one of dm, dc, dsa, mtt, shrink, got"):
        distill("shrimp", tiny_dataset(), DistillOptions(), CMIOptions(), None, folder, CPU)
