"""The model of the CUDA kernels' time, and where its predictions go."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.gpu import model, predictions
from bench.gpu.predictions import H200
from bench.gpu.replay import LAUNCH
from bench.harness.providers import PROVIDERS
from bench.harness.race import COPY, EXP, FRESH_EXP, Timing
from bench.harness.records import Record, Row
from bench.harness.shapes import SETS, SWEEPS, Shape
from bench.kernels import measure

ALL_SHAPES = sorted({shape for group in (*SETS.values(), *SWEEPS.values()) for shape in group})
CALLS = [
    pytest.param(dtype, mode, id=f"{dtype}-{mode}")
    for dtype, mode in itertools.product((torch.float32, torch.bfloat16), measure.PASSES)
]


@pytest.mark.parametrize(("dtype", "mode"), CALLS)
def test_every_shape_has_a_prediction(dtype: torch.dtype, mode: str) -> None:
    for shape in ALL_SHAPES:
        found = {form: model.predict(shape, dtype, mode, H200, form) for form in model.FORMS}
        above, below = found["direct"], found["long series"]
        floor = shape.elements * dtype.itemsize * (1 + (mode != "value")) / H200.copy_rate
        assert floor < above.seconds <= found["balanced"].seconds <= below.seconds
        assert above.seconds <= found["short series"].seconds <= below.seconds
        assert above.limit in ("launches", "memory", "issue", "exps", "latency")


def test_the_form_of_the_value_follows_from_spread_and_rows() -> None:
    shape = Shape(10, 50, 512)
    forms = [model.form_of(shape, spread) for spread in (1.0, 0.5, 0.2, 0.1, 0.01)]
    assert forms == ["direct", "balanced", "long series", "short series", "short series"]
    assert model.form_of(shape._replace(rows=2), 1.0) == "balanced"
    assert model.form_of(shape._replace(rows=1), 1.0) == "short series"


@pytest.mark.parametrize(("dtype", "mode"), CALLS)
@pytest.mark.parametrize("axis", Shape._fields)
def test_predictions_grow_with_the_size(axis: str, dtype: torch.dtype, mode: str) -> None:
    smallest = Shape(64, 16, 256)
    grown = [
        smallest._replace(**{axis: getattr(smallest, axis) * factor}) for factor in (1, 8, 64, 512)
    ]
    seconds = [model.predict(shape, dtype, mode, H200).seconds for shape in grown]
    assert seconds == sorted(seconds)


def test_large_calls_that_wait_for_memory_come_near_a_copy() -> None:
    shares = []
    for shape in SETS["large"]:
        found = model.predict(shape, torch.float32, "value+gradient", H200)
        if found.limit == "memory":
            shares.append(2 * shape.elements * 4 / H200.copy_rate / found.seconds)
    assert len(shares) >= 3
    assert all(0.5 < share < 1 for share in shares)


def test_launches_are_those_of_the_plan() -> None:
    def launches_of(shape: Shape, mode: str) -> tuple[str, int]:
        found = model.predict(shape, torch.float32, mode, H200)
        return found.plan["kind"], found.launches

    held, slots = Shape(10, 10, 512), Shape(10, 10_000, 1024)
    assert launches_of(held, "value") == ("classes", 2)
    assert launches_of(held, "value+gradient") == ("classes", 3)
    assert launches_of(slots, "value") == ("slots", 3)
    assert launches_of(slots, "value+gradient") == ("slots", 5)


def test_a_last_round_of_few_classes_takes_as_long_as_a_full_one() -> None:
    plan = {"kind": "classes", "blocks": 31 * 4, "cluster": 4}

    def working(classes: int) -> float:
        return model.working(plan, Shape(classes, 50, 1024), H200.chip)

    assert working(310) == 31 * 4
    assert working(311) == pytest.approx(311 * 4 / 11)


def test_no_prediction_is_of_clusters_that_wait_for_others_to_end() -> None:
    found = predictions.rows()
    assert len(found) == len(predictions.DTYPES) * len(predictions.SHAPES)
    in_clusters = [row for row in found if "plan_clusters" in row and row["plan_cluster"] > 1]
    assert len(in_clusters) > 10
    assert all(row["plan_clusters"] <= row["plan_resident"] for row in in_clusters)


def test_predictions_say_that_nothing_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["predictions", "--out", str(tmp_path)])
    predictions.main()
    shown = capsys.readouterr().out
    assert shown.startswith("Predicted and not measured.")
    assert predictions.report(Record.read(tmp_path / "predictions.json")) in shown


def test_a_slow_machine_is_predicted_to_be_limited_by_what_is_slow() -> None:
    slow = {
        "memory": replace(H200, copy_rate=1e9),
        "issue": replace(H200, clock=1e7),
        "launches": replace(H200, launch=1.0),
    }
    for limit, gpu in slow.items():
        found = model.predict(Shape(20_000, 10, 512), torch.float32, "value+gradient", gpu)
        assert found.limit == limit


def test_predictions_use_what_the_race_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, float] = {}

    def machine_here(copy_rate: float, launch: float, device: int) -> model.Machine:
        asked.update(copy_rate=copy_rate, launch=launch)
        return H200

    monkeypatch.setattr(measure, "machine_here", machine_here)
    seconds = {COPY: 201e-6, LAUNCH: 1e-6}
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


def test_ours_are_raced_at_every_spread_and_the_others_at_one() -> None:
    rows = measure.measure(
        Shape(2, 3, 8), "float32", ["value"], ["published", "cmikernels"], "cpu", 0.01, False, [0.1]
    )
    spreads = [(row["contender"], row["spread"]) for row in rows if row["contender"] in PROVIDERS]
    assert spreads == [("published", 1.0), ("cmikernels", 1.0), ("cmikernels", 0.1)]
    normal, closer = rows[1:3]
    assert "over_normal" not in normal
    assert closer["over_normal"] == pytest.approx(closer["seconds"] / normal["seconds"], rel=1e-3)


def test_every_backend_is_compared_with_every_provider_that_was_raced_with_it() -> None:
    seconds = {"published": 8.0, "triton": 1.0, "cuda": 1.25, COPY: 0.5, EXP: 1.0, FRESH_EXP: 2.0}
    times = {name: Timing(time, time, time, 9, None) for name, time in seconds.items()}
    found = measure.relations("cuda", times, 5, "value+gradient")
    assert found["speedup_over_published"] == pytest.approx(6.4)
    assert found["speedup_over_triton"] == pytest.approx(0.8)
    assert found["of_copy"] == pytest.approx(0.4)
