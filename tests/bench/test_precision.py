"""The benchmark of the precision that the regulariser needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d

from bench import precision
from bench.harness.records import Record


def test_emulated_tf32_rounds_to_ten_bits_to_even() -> None:
    step = 2.0**-10
    given = torch.tensor([1.0, 1 + step, 1 + step / 2, 1 + 3 * step / 2, -1 - 0.51 * step, 3e-39])
    images, one = given.view(1, 1, 1, -1).requires_grad_(), torch.ones(1, 1, 1, 1)
    with precision.EmulatedTF32():  # type: ignore[no-untyped-call]
        out = conv2d(images, one)
        (gradient,) = torch.autograd.grad(out, images, images.detach())
    expected = torch.tensor([1.0, 1 + step, 1.0, 1 + 2 * step, -1 - step])
    assert torch.equal(out.flatten()[:5], expected)
    assert torch.equal(gradient.flatten()[:5], expected)
    assert torch.equal(images.flatten() * 1.0, given)


@pytest.mark.slow
def test_gradients_and_outcome_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = ["--out", str(tmp_path), "--folder", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["bench.precision", "--quick", *folders])
    precision.main()
    record = Record.read(tmp_path / "precision.json")
    gradients = [row for row in record.rows if row["what"] == "gradient"]
    errors = {name: [r["error"] for r in gradients if r["precision"] == name]
              for name in ("float32", "emulated tf32", "bfloat16")}  # fmt: skip
    assert max(errors["float32"]) < min(errors["emulated tf32"])
    assert max(errors["emulated tf32"]) < min(errors["bfloat16"]) < 1
    assert all(row["cosine"] > 0.9 for row in gradients if row["error"] is not None)
    outcome = [row for row in record.rows if row["what"] == "outcome"]
    assert {row["precision"] for row in outcome} == {"float32", "bfloat16"}
    assert "| another network" in precision.report(record)
