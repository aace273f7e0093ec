"""Who is measured on which shapes."""

from __future__ import annotations

import pytest
import torch

from bench.harness.providers import PROVIDERS, gpu_backends, make_losses
from bench.harness.shapes import SETS, Shape, shapes_of


def test_a_backend_that_cannot_run_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cmikernels.backends.cuda.obstacle", lambda _: "no GPU")
    features = torch.randn(2, 3, 8)
    said: list[str] = []
    assert list(make_losses(["published", "cuda"], features, None, said.append)) == ["published"]
    assert len(said) == 1
    assert said[0].startswith("cuda left out: backend:")
    assert said[0].endswith("no GPU")
    assert "cuda" not in gpu_backends("cpu")


def test_an_error_of_our_own_backend_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("bench.harness.providers.fused_cmi", broken)
    with pytest.raises(RuntimeError, match="broken"):
        make_losses(["cmikernels"], torch.randn(2, 3, 8), None, print)


def test_some_classes_fit_a_tile() -> None:
    assert Shape(20_000, 10, 512).fits_a_tile
    assert not Shape(10, 10_000, 1024).fits_a_tile


def test_shapes_come_from_sets_and_one_by_one() -> None:
    assert shapes_of(["small", "2x3x4", "small"]) == [*SETS["small"], Shape(2, 3, 4)]
    assert all(PROVIDERS[name].ours for name in ("cmikernels", "triton", "cuda"))
