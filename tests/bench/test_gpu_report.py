"""A GPU's results as tables and pictures, from a record with made-up numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import model
from bench.gpu import report as gpu_report
from bench.gpu.predictions import H200
from bench.gpu.replay import LAUNCH
from bench.harness.command import saved_rows
from bench.harness.records import Record, Row, machine
from bench.harness.shapes import Shape
from bench.kernels import __main__ as kernels
from bench.kernels import plots
from bench.kernels.report import report, times_table


def row(
    shape: str, contender: str, of_copy: float, speedup: float, seconds: float = 1e-3, **more: Any
) -> Row:
    found: Row = {"group": "shapes", "shape": shape, **Shape.parse(shape)._asdict()}
    found |= {"dtype": "float32", "mode": "value+gradient", "contender": contender}
    found |= {"one_tile": Shape.parse(shape).fits_a_tile}
    for prefix in gpu_report.CLOCKS.values():
        found |= {f"{prefix}seconds": seconds, f"{prefix}p20": seconds, f"{prefix}p80": seconds}
        found |= {f"{prefix}of_copy": of_copy, f"{prefix}gb_per_s": 1000.0}
        found |= {f"{prefix}speedup_over_published": speedup}
    return found | more


def cuda_row(
    shape: str, of_copy: float, speedup: float, seconds: float, predicted: float, **more: float
) -> Row:
    plan = model.plan_of(Shape.parse(shape), torch.float32, H200.chip)
    of_plan = {f"plan_{key}": plan[key] for key in ("kind", "cluster", "threads", "stages")}
    found = row(shape, "cuda", of_copy, speedup, seconds, **of_plan, predicted_seconds=predicted)
    for clock in gpu_report.CLOCKS.values():
        found |= {f"{clock}{key}": value for key, value in more.items()}
    return found


@pytest.fixture
def record() -> Record:
    """A record with made-up numbers of three shapes, as a GPU would give it."""
    where = {**machine(), "gpu": "a GPU", "cuda": "0"}
    rows = [
        row("20000x10x512", "triton", 0.9, 4.0),
        row("10x10000x1024", "triton", 0.5, 16.0),
        row("10x10x512", "triton", 0.1, 9.0, 11e-6),
        row("10x10x512", LAUNCH, 0.0, 1.0, 2e-6),
        cuda_row("20000x10x512", 0.92, 16.0, 8e-4, 4e-4, speedup_over_triton=1.25),
        cuda_row("2000x50x1024", 0.85, 16.0, 9e-4, 1e-3),
        cuda_row("10x10000x1024", 0.7, 16.0, 1.25e-3, 1e-3, speedup_over_triton=0.8),
        cuda_row("10x10x512", 0.1, 32.0, 10e-6, 8e-6, speedup_over_triton=1.1),
    ]
    return Record("kernels", where, {"key": "k"}, rows)


def ratios(record: Record, contender: str) -> list[list[str]]:
    lines = [line.split("|") for line in gpu_report.ratios(record.rows).splitlines()]
    return [[cell.strip() for cell in line[4:-1]] for line in lines if f" {contender} " in line[1]]


def test_ratios_are_taken_from_the_rows(record: Record) -> None:
    mean, compiled, fits, does_not = ratios(record, "triton")
    assert mean[1:] == ["3", "8.32 (4 to 16)", "8.32 (4 to 16)"]
    assert compiled[2:] == ["-", "-"]  # nothing was measured
    # Of a tile; the small shape is left out.
    assert fits[1:3] == ["1", "90% (20000x10x512) to 90%"]
    assert does_not[1:3] == ["1", "50% (10x10000x1024) to 50%"]


def test_the_cuda_backend_is_compared_with_its_plan_and_with_triton(record: Record) -> None:
    mean, _, fits, does_not, against = ratios(record, "cuda")
    assert mean[3] == "19 (16 to 32)"
    # 50 rows of 1024 channels are beyond a tile, but held by a cluster.
    assert fits[1:3] == ["2", "85% (2000x50x1024) to 92%"]
    assert does_not[1:3] == ["1", "70% (10x10000x1024) to 70%"]
    assert against[3] == "0.8 (10x10000x1024) to 1.25"


def test_predictions_stand_beside_times(record: Record) -> None:
    text = times_table(record.rows, gpu_report.COLUMNS, LAUNCH)
    header, _, *lines = ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
    at = header.index("predicted")
    assert header[at - 1 : at + 2] == ["replayed", "predicted", "x predicted"]
    shown = {(line[1], line[2]): line[at - 1 : at + 2] for line in lines}
    assert shown["20000x10x512", "cmikernels, CUDA"] == ["800 us", "400 us", "2.00"]
    assert shown["20000x10x512", "cmikernels, Triton"] == ["1 ms", "-", "-"]
    assert shown["10x10x512", LAUNCH] == ["2 us", "-", "-"]


def test_calls_on_closer_rows_stand_by_themselves(record: Record, tmp_path: Path) -> None:
    closer = cuda_row("20000x10x512", 0.6, 10.0, 12e-4, 9e-4, over_normal=1.5)
    record.rows.append({**closer, "spread": 0.1})
    ours = [line for line in report(record).splitlines() if "cmikernels, CUDA" in line]
    by_spread = [[cell.strip() for cell in line.split("|")[3:-1]] for line in ours[-2:]]
    assert by_spread == [["1", "800 us", "-", "92%"], ["0.1", "1.2 ms", "1.50", "60%"]]
    assert sum(" 1.2 ms " in line for line in ours) == 1, "not among standard normal features"
    assert ratios(record, "cuda")[2][1:3] == ["2", "85% (2000x50x1024) to 92%"]
    assert ratios(record, "cuda")[7][1:3] == ["1", "60% (20000x10x512) to 60%"]
    plots.kernels(record, tmp_path / "gpu")


def test_a_gpu_record_is_shown(record: Record, tmp_path: Path) -> None:
    text = report(record)
    assert "a GPU" in text
    assert "cmikernels, Triton" in text
    pictures = plots.kernels(record, tmp_path / "gpu")
    assert [path.name for path in pictures] == ["gpu-speedup-float32.png", "gpu-copy-float32.png"]
    assert all(path.stat().st_size > 0 for path in pictures)


def test_a_cut_run_goes_on_only_on_the_same_machine_with_the_same_settings(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.settings["sizes"] = (1, 2)  # a list in the file
    record.write("kernels", tmp_path, json_only=True)
    monkeypatch.setattr("sys.argv", ["kernels", "--out", str(tmp_path), "--resume", "k"])
    asked, here, settings = kernels.parse(), record.machine, record.settings

    def saved(where: Row, chosen: Row) -> list[Row]:
        return saved_rows(asked, Record("kernels", where, chosen, []))

    assert saved(here, settings) == record.rows
    assert saved({**here, "gpu": "other"}, settings) == []
    assert saved(here, {**settings, "key": "other"}) == []
    assert saved(here, {**settings, "sizes": (1, 3)}) == []
