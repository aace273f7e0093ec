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
from cmidd.loop import distill
from cmidd.methods import METHODS, Method, MethodEntry, Published, register
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import AS_PUBLISHED, Options
from cmidd.options.methods import METHOD_OPTIONS
from cmidd.run import prepare
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import CPU, tiny_dataset


@dataclass(frozen=True)
class ShrinkOptions(Options):
    """What the method can be told.

    Args:
        share: of the images that a step takes away; default: a tenth
    """

    share: float = AS_PUBLISHED


class Shrink(Method):
    """Makes images smaller."""

    network_spec = "mlp"

    def __init__(self, _dataset: Any, _labels: Tensor, options: ShrinkOptions, *_: Any) -> None:
        self.share = options.share

    def loss_and_gradient(self, images: Tensor, _draws: Any) -> tuple[Tensor, Tensor]:
        return self.share * images.detach().square().sum() / 2, self.share * images.detach()


def published(_dataset: Any, ipc: int) -> Published:
    loop = {"iterations": 6, "init": "real", "lr_images": 1.0 / ipc, "report_every": 1,
            "checkpoint_every": 2}  # fmt: skip
    return Published(loop, {"share": 0.1}, {"epochs": 7}, origin="as ever")


@pytest.fixture(autouse=True)
def _shrink() -> Iterator[None]:
    register("shrink", MethodEntry(Shrink, ShrinkOptions, published))
    yield
    del METHODS["shrink"], METHOD_OPTIONS["shrink"]


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
    run = prepare("shrink", tiny_dataset(), DistillOptions(ipc=2), ShrinkOptions(0.5), device=CPU)
    result = distill(run, run.folder(tmp_path))
    assert result.record["method"] == "shrink"


def test_it_goes_on_after_a_stop_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = command(tmp_path / "whole")
    shrunk = Shrink.loss_and_gradient

    def stopping(self: Shrink, images: Tensor, draws: Any) -> Any:
        if draws == (3, 0):
            raise KeyboardInterrupt
        return shrunk(self, images, draws)

    with monkeypatch.context() as patch:
        patch.setattr(Shrink, "loss_and_gradient", stopping)
        with pytest.raises(SystemExit) as stopped:
            command(tmp_path / "cut")
        assert stopped.value.code == 130
    assert torch.equal(command(tmp_path / "cut", "--resume").images, whole.images)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="name: a method shrink exists already"):
        register("shrink", METHODS["shrink"])


def test_an_unknown_name_is_an_error_that_lists_the_known() -> None:
    expected = "method: expected one of dm, dc, dsa, mtt, idc, idm, iid, ncfm, shrink, got"
    with pytest.raises(ValueError, match=expected):
        prepare("shrimp", tiny_dataset())


def test_the_options_of_all_methods_are_in_the_table_that_the_commands_read() -> None:
    assert {name: entry.options for name, entry in METHODS.items()} == METHOD_OPTIONS
