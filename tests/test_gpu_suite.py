"""What the GPU suite makes of tools' output and of rows, checked without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import counters, gpu_plots, gpu_report, kernels, launches, sanitize
from bench.providers import PROVIDERS, gpu_backends, make_losses
from bench.records import Record, Row, machine
from bench.shapes import SETS, Shape, shapes_of

INITCHECK = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4>(int, T3)+0x90
=========     by thread (0,0,0) in block (0,0,0)
========= Uninitialized __global__ memory read of size 4 bytes
=========     at class_tiles+0x1230 in triton_kernels.py:210
=========     by thread (3,0,0) in block (0,0,0)
========= ERROR SUMMARY: 2 errors
"""
NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Block Size","Grid Size","{}"
"","","","","","ns","byte","byte","%","%","%","register/thread"
"0","7","class_tiles","(128, 1, 1)","(10000, 1, 1)","200,000","1000","2,000","80.5","1","50","96"
"1","7","sum_values","(128, 1, 1)","(1, 1, 1)","3000","10","n/a","0.1","90","3","32"
""".format('","'.join(counters.METRICS.values()))


def test_only_our_kernels_uninitialised_reads_count() -> None:
    assert sanitize.uninitialised_reads(INITCHECK) == (
        ["class_tiles+0x1230 in triton_kernels.py:210"],
        1,
    )


def test_counters_are_read_from_the_raw_page(tmp_path: Path) -> None:
    first, second = counters.kernels(NCU)
    assert (first["kernel"], first["seconds"], first["written_bytes"]) == (
        "class_tiles",
        pytest.approx(2e-4),
        2000,
    )
    assert second["written_bytes"] is None
    path = tmp_path / "counters.csv"
    head = {"backend": "triton", "shape": "10000x10x1024", "dtype": "float32"}
    for rows in ([first], [second], [first, second]):  # a later run replaces an earlier one
        counters.keep(path, head, rows)
    assert "200 us" in counters.show(path)
    assert len(counters.show(path).splitlines()) == 4
    counters.keep(path, {**head, "dtype": "bfloat16"}, [first])
    assert len(counters.show(path).splitlines()) == 5


def test_no_kernels_in_other_output() -> None:
    assert counters.kernels("==ERROR== ERR_NVGPUCTRPERM") == []


def test_launches_are_the_device_events_of_a_trace() -> None:
    events = [
        {"cat": "kernel", "name": "class_tiles"},
        {"cat": "kernel", "name": "class_tiles"},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel"},
        {"ph": "M", "name": "process_name"},
    ]
    assert launches.on_device(events) == {"class_tiles": 2, "Memcpy HtoD": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has launches")
def test_nothing_is_launched_without_a_gpu() -> None:
    assert launches.launches(lambda: torch.ones(3).exp()) == {}


def row(shape: str, contender: str, one_tile: bool, of_copy: float, speedup: float) -> Row:
    found: Row = {"group": "shapes", "shape": shape, **Shape.parse(shape)._asdict()}
    found |= {"dtype": "float32", "mode": "value+gradient", "contender": contender}
    found |= {"one_tile": one_tile, "launches": 2, "kernels": "class_tiles x1, sum_values x1"}
    for prefix in gpu_report.CLOCKS.values():
        found |= {f"{prefix}seconds": 1e-3, f"{prefix}p20": 1e-3, f"{prefix}p80": 1e-3}
        found |= {f"{prefix}of_copy": of_copy, f"{prefix}gb_per_s": 1000.0}
        found |= {f"{prefix}speedup_over_published": speedup}
    return found


@pytest.fixture
def record() -> Record:
    """A record with made-up numbers of three shapes, as a GPU would give it."""
    where = {**machine(), "gpu": "a GPU", "cuda": "0"}
    rows = [
        row("10000x10x1024", "triton", True, 0.9, 4.0),
        row("10x10000x1024", "triton", False, 0.5, 16.0),
        row("10x10x512", "triton", True, 0.1, 9.0),
        row("10x10x512", "2 launches", True, 0.0, 1.0),
    ]
    return Record("kernels", where, {"key": "k"}, rows)


def test_targets_are_judged_from_the_rows(record: Record) -> None:
    text = gpu_report.targets(record.rows)
    mean, compiled, tile, beyond, count = text.splitlines()[2:]
    assert "8.32 met (4 to 16)" in mean
    assert compiled.count(" - |") == 2  # nothing was measured
    assert "90% met (10000x10x1024; best 90%)" in tile  # the small shape is not judged
    assert "50% missed (10x10000x1024; best 50%)" in beyond
    assert "2 met" in count


def test_a_gpu_record_is_shown(record: Record, tmp_path: Path) -> None:
    text = kernels.report(record)
    assert "a GPU" in text
    assert "cmikernels, Triton" in text
    pictures = gpu_plots.kernels(record, tmp_path / "gpu")
    assert [path.name for path in pictures] == ["gpu-size-float32.png", "gpu-copy-float32.png"]
    assert all(path.stat().st_size > 0 for path in pictures)


def test_a_cut_run_goes_on_only_on_the_same_machine_and_key(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write("kernels", tmp_path, json_only=True)
    arguments = ["kernels", "--out", str(tmp_path), "--resume"]
    monkeypatch.setattr("sys.argv", [*arguments, "k"])
    assert kernels.saved_rows(kernels.parse(), record.machine) == record.rows
    assert kernels.saved_rows(kernels.parse(), {**record.machine, "gpu": "other"}) == []
    monkeypatch.setattr("sys.argv", [*arguments, "other"])
    assert kernels.saved_rows(kernels.parse(), record.machine) == []


def test_a_backend_that_cannot_run_is_left_out_with_the_reason() -> None:
    features = torch.randn(2, 3, 8)
    said: list[str] = []
    assert list(make_losses(["published", "cuda"], features, None, said.append)) == ["published"]
    assert len(said) == 1
    assert said[0].startswith("cuda left out: backend:")
    assert "cuda" not in gpu_backends("cpu")


def test_an_error_of_our_own_backend_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("bench.providers.fused_cmi", broken)
    with pytest.raises(RuntimeError, match="broken"):
        make_losses(["cmikernels"], torch.randn(2, 3, 8), None, print)


def test_some_classes_fit_a_tile() -> None:
    assert Shape(20_000, 10, 512).fits_a_tile
    assert not Shape(10, 10_000, 1024).fits_a_tile


def test_shapes_come_from_sets_and_one_by_one() -> None:
    assert shapes_of(["small", "2x3x4", "small"]) == [*SETS["small"], Shape(2, 3, 4)]
    assert all(PROVIDERS[name].ours for name in ("cmikernels", "triton", "cuda"))
