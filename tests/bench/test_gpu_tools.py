"""What becomes of the output of ncu; needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu import counters
from bench.harness.shapes import Shape

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
    for _ in range(2):  # a later run replaces an earlier one
        counters.file_of(tmp_path, "triton", Shape(10_000, 10, 1024), "float32").write_text(NCU)
    assert "200 us" in counters.show(tmp_path)
    assert len(counters.show(tmp_path).splitlines()) == 4
    one = NCU.rpartition('"1"')[0]
    counters.file_of(tmp_path, "triton", Shape(10_000, 10, 1024), "bfloat16").write_text(one)
    assert len(counters.show(tmp_path).splitlines()) == 5


def test_no_kernels_in_other_output() -> None:
    assert counters.kernels("==ERROR== ERR_NVGPUCTRPERM") == []
