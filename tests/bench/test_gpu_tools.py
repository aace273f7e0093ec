"""What becomes of the output of ncu and of a profiler's trace; needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.gpu import counters, launches

NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Block Size","Grid Size","{}"
"","","","","","ns","byte","byte","%","%","%","register/thread"
"0","7","class_tiles","(128, 1, 1)","(10000, 1, 1)","200,000","1000","2,000","80.5","1","50","96"
"1","7","sum_values","(128, 1, 1)","(1, 1, 1)","3000","10","n/a","0.1","90","3","32"
""".format('","'.join(counters.METRICS.values()))


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
