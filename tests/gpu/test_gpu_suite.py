"""What the GPU suite makes of tools' output and of rows, checked without a GPU."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import counters, launches, model
from bench.gpu import plots as gpu_plots
from bench.gpu import report as gpu_report
from bench.harness import records
from bench.harness.providers import PROVIDERS, gpu_backends, make_losses
from bench.harness.race import COPY, Timing
from bench.harness.records import Record, Row, machine
from bench.harness.shapes import SETS, SWEEPS, Shape, shapes_of
from bench.kernels import __main__ as kernels
from bench.kernels import measure
from cmikernels.native import native
from tests.gpu import sanitize
from tests.gpu.sanitize_case import cases

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


FILL = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)"


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


def triton_row(shape: str, of_copy: float, speedup: float, seconds: float = 1e-3) -> Row:
    by = {"launches": 2, "kernels": "class_tiles x1, sum_values x1"}
    return row(shape, "triton", of_copy, speedup, seconds, **by)


def cuda_row(shape: str, of_copy: float, speedup: float, seconds: float, predicted: float) -> Row:
    plan = model.plan_of(Shape.parse(shape), torch.float32, model.H200.chip)
    more = {f"plan_{key}": plan[key] for key in ("kind", "cluster", "threads", "stages")}
    by = {"launches": 4, "kernels": f"class_kernel x2, total_kernel x1, {FILL} x1"}
    more |= {**by, "predicted_seconds": predicted}
    return row(shape, "cuda", of_copy, speedup, seconds, **more)


@pytest.fixture
def record() -> Record:
    """A record with made-up numbers of three shapes, as a GPU would give it."""
    where = {**machine(), "gpu": "a GPU", "cuda": "0"}
    rows = [
        triton_row("20000x10x512", 0.9, 4.0),
        triton_row("10x10000x1024", 0.5, 16.0),
        triton_row("10x10x512", 0.1, 9.0, 11e-6),
        row("10x10x512", "2 launches", 0.0, 1.0, 4e-6),
        row("10x10x512", "3 launches", 0.0, 1.0, 6e-6),
        cuda_row("20000x10x512", 0.92, 16.0, 8e-4, 4e-4),
        cuda_row("2000x50x1024", 0.85, 16.0, 9e-4, 1e-3),
        cuda_row("10x10000x1024", 0.7, 16.0, 1.25e-3, 1e-3),
        cuda_row("10x10x512", 0.1, 32.0, 10e-6, 8e-6),
    ]
    return Record("kernels", where, {"key": "k"}, rows)


def verdicts(record: Record, contender: str) -> list[str]:
    lines = gpu_report.targets(record.rows).splitlines()
    return [line for line in lines if line.startswith(f"| {contender} ")]


def test_targets_are_judged_from_the_rows(record: Record) -> None:
    mean, compiled, tile, beyond, count = verdicts(record, "triton")
    assert "8.32 met (4 to 16)" in mean
    assert compiled.count(" - |") == 2  # nothing was measured
    assert "90% met (20000x10x512; best 90%)" in tile  # the small shape is not judged
    assert "50% missed (10x10000x1024; best 50%)" in beyond
    assert "2 met" in count


def test_more_is_asked_of_the_cuda_backend(record: Record) -> None:
    mean, _, cluster, beyond, count, floor, never = verdicts(record, "cuda")
    assert ">= 15 " in mean
    assert "19 met (16 to 32)" in mean
    assert "2 large shapes" in cluster  # 50 rows of 1024 channels are beyond a tile, but held
    assert "85% missed (2000x50x1024; best 92%)" in cluster
    assert "70% missed (10x10000x1024; best 70%)" in beyond
    assert "3 met" in count  # torch's own is not counted
    # Four launches, from the time of three, in which a graph has no more than a pace.
    assert "1.25 met (10x10x512; best 1.25)" in floor
    assert "0.8 missed (10x10000x1024; best 1.25)" in never


def test_our_fastest_backend_is_asked_what_the_one_that_served_is(record: Record) -> None:
    by_name: dict[str, list[Row]] = {"triton": [], "cuda": []}
    for name, rows in by_name.items():
        rows += [{**row, "contender": "cmikernels"} for row in record.rows if name in row.values()]
        asked = gpu_report.asked_of("cmikernels", rows)
        assert asked is gpu_report.TARGETS[name]


def test_predictions_stand_beside_times(record: Record) -> None:
    text = gpu_report.times_table(record.rows, "value+gradient", "float32")
    header, _, *lines = ([cell.strip() for cell in line.split("|")] for line in text.splitlines())
    at = header.index("predicted")
    assert header[at - 1 : at + 2] == ["replayed", "predicted", "x predicted"]
    shown = {(line[1], line[2]): line[at - 1 : at + 2] for line in lines}
    assert shown["20000x10x512", "cmikernels, CUDA"] == ["800 us", "400 us", "2.00"]
    assert shown["20000x10x512", "cmikernels, Triton"] == ["1 ms", "-", "-"]


def test_a_gpu_record_is_shown(record: Record, tmp_path: Path) -> None:
    text = kernels.report(record)
    assert "a GPU" in text
    assert "cmikernels, Triton" in text
    pictures = gpu_plots.kernels(record, tmp_path / "gpu")
    assert [path.name for path in pictures] == ["gpu-size-float32.png", "gpu-copy-float32.png"]
    assert all(path.stat().st_size > 0 for path in pictures)


def test_a_cut_run_goes_on_only_on_the_same_machine_with_the_same_settings(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.settings["sizes"] = (1, 2)  # a list in the file
    record.write("kernels", tmp_path, json_only=True)
    monkeypatch.setattr("sys.argv", ["kernels", "--out", str(tmp_path), "--resume", "k"])
    asked, here, settings = kernels.parse(), record.machine, record.settings
    assert records.saved_rows(asked, here, settings) == record.rows
    assert records.saved_rows(asked, {**here, "gpu": "other"}, settings) == []
    assert records.saved_rows(asked, here, {**settings, "key": "other"}) == []
    assert records.saved_rows(asked, here, {**settings, "sizes": (1, 3)}) == []


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


ALL_SHAPES = sorted({shape for group in (*SETS.values(), *SWEEPS.values()) for shape in group})
CALLS = [
    pytest.param(dtype, mode, id=f"{dtype}-{mode}")
    for dtype, mode in itertools.product((torch.float32, torch.bfloat16), model.MODES)
]


@pytest.mark.parametrize(("dtype", "mode"), CALLS)
def test_every_shape_has_a_prediction(dtype: torch.dtype, mode: str) -> None:
    for shape in ALL_SHAPES:
        above, below = (
            model.predict(shape, dtype, mode, model.H200, accurate) for accurate in (False, True)
        )
        floor = shape.elements * dtype.itemsize * (1 + (mode != "value")) / model.H200.copy_rate
        assert floor < above.seconds <= below.seconds
        assert above.limit in ("launches", "memory", "issue", "exps", "latency")


@pytest.mark.parametrize(("dtype", "mode"), CALLS)
@pytest.mark.parametrize("axis", Shape._fields)
def test_predictions_grow_with_the_size(axis: str, dtype: torch.dtype, mode: str) -> None:
    smallest = Shape(64, 16, 256)
    grown = [
        smallest._replace(**{axis: getattr(smallest, axis) * factor}) for factor in (1, 8, 64, 512)
    ]
    seconds = [model.predict(shape, dtype, mode, model.H200).seconds for shape in grown]
    assert seconds == sorted(seconds)


def test_large_calls_that_wait_for_memory_come_near_a_copy() -> None:
    shares = []
    for shape in SETS["large"]:
        found = model.predict(shape, torch.float32, "value+gradient", model.H200)
        if found.limit == "memory":
            shares.append(2 * shape.elements * 4 / model.H200.copy_rate / found.seconds)
    assert len(shares) >= 3
    assert all(0.5 < share < 1 for share in shares)


def test_launches_are_those_of_the_plan() -> None:
    def launches_of(shape: Shape, mode: str) -> tuple[str, int]:
        found = model.predict(shape, torch.float32, mode, model.H200)
        return found.plan["kind"], found.launches

    held, slots = Shape(10, 10, 512), Shape(10, 10_000, 1024)
    assert launches_of(held, "value") == ("classes", 2)
    assert launches_of(held, "value+gradient") == ("classes", 3)
    assert launches_of(slots, "value") == ("slots", 4)
    assert launches_of(slots, "value+gradient") == ("slots", 7)


def test_a_slow_machine_is_predicted_to_be_limited_by_what_is_slow() -> None:
    slow = {
        "memory": replace(model.H200, copy_rate=1e9),
        "issue": replace(model.H200, clock=1e7),
        "launches": replace(model.H200, launch=1.0),
    }
    for limit, gpu in slow.items():
        found = model.predict(Shape(20_000, 10, 512), torch.float32, "value+gradient", gpu)
        assert found.limit == limit


def test_predictions_use_what_the_race_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, float] = {}

    def machine_here(copy_rate: float, launch: float, device: int) -> model.Machine:
        asked.update(copy_rate=copy_rate, launch=launch)
        return model.H200

    monkeypatch.setattr(measure, "machine_here", machine_here)
    seconds = {COPY: 201e-6, "1 launch": 1.5e-6, "2 launches": 2.5e-6}
    replays = {name: Timing(time, time, time, 9, None) for name, time in seconds.items()}

    def prediction(dtype: torch.dtype) -> Row:
        return measure.prediction(Shape(1000, 100, 1000), dtype, "value", replays, "cuda")

    assert prediction(torch.float32).keys() == {"predicted_seconds", "predicted_limit"}
    assert asked["copy_rate"] == pytest.approx(4e12)  # the launch is none of its time
    assert asked["launch"] == pytest.approx(1e-6)
    assert prediction(torch.float64) == {}, "its instructions were not counted"
    del replays[COPY]
    assert prediction(torch.float32) == {}


def test_rows_measured_on_the_cpu_have_no_prediction() -> None:
    rows = measure.measure(
        Shape(2, 3, 8), "float32", ["value"], ["cmikernels"], "cpu", 0.01, memory=False
    )
    assert not any(key.startswith(("plan_", "predicted_")) for row in rows for key in row)


def test_what_is_sanitized_takes_all_ways_of_the_cuda_backend() -> None:
    found: set[tuple[object, object]] = set()
    for case in cases(model.H200.processors):
        weighted = case.reduction == "none" and not case.given  # the backward's
        plan: dict[str, Any] = native.cuda_plan(
            rows=sum(case.sizes),
            classes=len(case.sizes),
            largest=max(case.sizes),
            channels=case.channels,
            element_bytes=case.dtype.itemsize,
            ragged=True,
            aligned=not case.transposed and case.channels * case.dtype.itemsize % 16 == 0,
            given=case.given,
            weighted=weighted,
            **model.H200.chip,
        )
        found |= {(plan["kind"], plan["form"])}
        found |= {(plan["kind"], "cluster" if plan["cluster"] > 1 else "block")}
        found |= {("stages", plan["stages"])}
    held = {("classes", way) for way in ("full", "packed", "any", "cluster", "block")}
    assert found >= held | {("stages", 1), ("stages", 4)}
    assert found >= {("slots", "full"), ("slots", "any"), ("wide", "any")}
