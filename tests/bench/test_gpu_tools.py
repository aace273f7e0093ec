"""What becomes of the output of ncu and of the times of graphs; needs no GPU."""

from __future__ import annotations

from pathlib import Path

from bench.gpu import counters
from bench.harness.race import Timing

NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Block Size","Grid Size","{}"
"","","","","","ns","byte","byte","%","%","%","register/thread"
"0","7","class_tiles","(128, 1, 1)","(10000, 1, 1)","200,000","1000","2,000","80.5","1","50","96"
"1","7","sum_values","(128, 1, 1)","(1, 1, 1)","3000","10","n/a","0.1","90","3","32"
""".format('","'.join(counters.METRICS.values()))


def test_counters_are_read_from_the_raw_page(tmp_path: Path) -> None:
    first, second = counters.kernels(NCU)
    assert (first["kernel"], first["time"], first["written"]) == (
        "class_tiles",
        "200,000 ns",
        "2,000 byte",
    )
    assert second["written"].startswith("n/a")
    for _ in range(2):  # a later run replaces an earlier one
        (tmp_path / "counters-triton-10000x10x1024.csv").write_text(NCU)
    assert "200,000 ns" in counters.show(tmp_path)
    assert len(counters.show(tmp_path).splitlines()) == 4
    one = NCU.rpartition('"1"')[0]
    (tmp_path / "counters-cuda-10000x10x1024.csv").write_text(one)
    assert len(counters.show(tmp_path).splitlines()) == 5


def test_no_kernels_in_other_output() -> None:
    assert counters.kernels("==ERROR== ERR_NVGPUCTRPERM") == []


def test_the_time_of_a_graph_is_divided_by_its_calls() -> None:
    assert Timing(8.0, 4.0, 12.0, 9, None) / 4 == Timing(2.0, 1.0, 3.0, 9, None)
