"""Every variant of the Triton kernels compiles for every supported GPU, without spilling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


KERNELS = {
    "triton_resources": {
        "class_tiles", "class_rows", "slot_sums", "class_means", "row_statistics",
        "slot_column_sums", "wide_rows", "weight_means", "sum_values",
    },
    "triton_norm_resources": {"forward", "backward", "double_backward", "add_rows"},
    "triton_changes_resources": {"changed"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("module", KERNELS)
def test_no_variant_spills_or_asks_for_too_much(module: str, tmp_path: Path) -> None:
    written = tmp_path / "resources.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.gpu.{module}", "--json", str(written)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    print(finished.stdout)  # the table, where the test fails or pytest runs with -s
    assert finished.returncode == 0, finished.stderr
    variants = json.loads(written.read_text())
    kernels = {(variant["target"], variant["kernel"]) for variant in variants}
    assert {target for target, _ in kernels} == {80, 90, 100, 120}
    names = {name for _, name in kernels}
    assert names == KERNELS[module]
    assert all(variant["stack_bytes"] == 0 for variant in variants)
