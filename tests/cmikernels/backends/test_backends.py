"""Which backends there are, which one serves a call, and how to ask for another."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmikernels import (
    BackendStatus,
    ClassIndex,
    available_backends,
    class_centroids,
    cmi_value_and_grad,
    fused_cmi,
)
from cmikernels.backends import choose_backend, cuda, operations, triton
from cmikernels.problem import checked_call
from tests.support.tables import BACKENDS, DEVICE_OF, REDUCTIONS, make_features, make_labels

FEATURES = torch.randn(2, 3, 4)


def test_every_backend_says_whether_it_can_run_and_how_or_why_not() -> None:
    for name, status in available_backends().items():
        assert isinstance(name, str)
        assert isinstance(status, BackendStatus)
        assert isinstance(status.available, bool)
        assert status.detail


def test_the_suite_knows_every_backend() -> None:
    assert set(available_backends()) == set(DEVICE_OF)


def test_the_reference_can_always_run() -> None:
    assert available_backends()["reference"].available


@pytest.mark.skipif(
    os.environ.get("CMIKERNELS_REQUIRE_NATIVE") != "1",
    reason="CMIKERNELS_REQUIRE_NATIVE=1 (as CI sets it) is not set",
)
def test_the_native_cpu_kernel_is_built() -> None:
    status = available_backends()["cpu"]
    assert status.available, status.detail


def test_the_first_that_can_run_serves_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMIKERNELS_BACKEND", raising=False)
    first = next(name for name in BACKENDS if DEVICE_OF[name] == "cpu")
    assert first == choose_backend(None, "cpu").NAME


@pytest.mark.parametrize(
    ("obstacle", "chosen"), [(None, "cuda"), ("it was built without CUDA kernels", "triton")]
)
def test_cuda_kernels_come_before_tritons_where_they_are_built(
    monkeypatch: pytest.MonkeyPatch, obstacle: str | None, chosen: str
) -> None:
    monkeypatch.delenv("CMIKERNELS_BACKEND", raising=False)
    monkeypatch.setattr(cuda, "obstacle", lambda _: obstacle)
    monkeypatch.setattr(triton, "obstacle", lambda _: None)
    assert chosen == choose_backend(None, "cuda").NAME


@pytest.mark.parametrize(
    ("version", "message"),
    [("3.3.1", "Triton 3.3.1 is too old: 3.4 or newer is needed; upgrade torch"), ("3.4.0", "")],
)
def test_a_triton_that_rounds_numbers_to_float32_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, message: str
) -> None:
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    launcher, error = triton._load.__wrapped__()
    assert (launcher is None) == bool(message)
    assert error.startswith(message)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CMIKERNELS_BACKEND", name)
    assert name == choose_backend(None, DEVICE_OF[name]).NAME
    features = FEATURES.to(DEVICE_OF[name])
    assert torch.equal(fused_cmi(features), fused_cmi(features, backend=name))


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIKERNELS_BACKEND", "magma")
    assert fused_cmi(FEATURES, backend="reference").isfinite()


@pytest.mark.parametrize("name", ["magma", "CPU"])
def test_an_unknown_name_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CMIKERNELS_BACKEND", name)
    with pytest.raises(ValueError, match=f"expected one of cpu, .*reference.*, got '{name}'"):
        fused_cmi(FEATURES)


def test_an_empty_environment_variable_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CMIKERNELS_BACKEND", "")
    assert fused_cmi(FEATURES).isfinite()


# An installation whose compiled core is missing.
WITHOUT_NATIVE = """
import sys
from typing import Any
sys.modules["cmikernels._native"] = None  # importing it raises ImportError
import torch
from cmikernels import ClassIndex, available_backends, fused_cmi

status = available_backends()["cpu"]
assert not status.available
assert "not built" in status.detail and "_native" in status.detail, status.detail
features, labels = torch.randn(6, 4), torch.tensor([2, 0, 2, 1, 0, 2])
assert torch.equal(fused_cmi(features, labels), fused_cmi(features, labels, backend="reference"))
try:
    fused_cmi(features, labels, backend="cpu")
except ValueError as error:
    assert str(error).startswith("backend: 'cpu' cannot run"), error
    assert "not built" in str(error), error
else:
    raise AssertionError("backend='cpu' ran without its kernels")
index = ClassIndex(labels, 5)
assert index.order.tolist() == [1, 4, 3, 0, 2, 5]
assert index.offsets.tolist() == [0, 2, 3, 6, 6, 6]
assert ClassIndex(labels.sort().values).order is None
for bad in (labels - 1, labels + 3):
    try:
        ClassIndex(bad, 5)
    except ValueError as error:
        assert "classes: labels must lie in [0, num_classes) = [0, 5)" in str(error), error
    else:
        raise AssertionError("labels out of range were taken")
"""


def test_without_the_native_kernel_the_library_says_so_and_the_reference_serves() -> None:
    unset = ("CMIKERNELS_BACKEND", "TRITON_INTERPRET")  # the latter lets Triton serve the CPU
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_NATIVE],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert finished.returncode == 0, finished.stderr


def test_every_public_function_takes_a_backend(backend: str) -> None:
    features = FEATURES.to(DEVICE_OF[backend]).requires_grad_()
    value, _ = cmi_value_and_grad(features, backend=backend)
    assert torch.equal(value, fused_cmi(features, backend=backend))
    assert class_centroids(features.detach(), backend=backend).shape == (2, 4)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("grouped", [True, False], ids=["equal classes", "labels"])
def test_one_call_fills_value_gradient_and_class_means(
    backend: str, grouped: bool, reduction: str
) -> None:
    device = DEVICE_OF[backend]
    features, classes = make_features((3, 5), 40).to(device), None
    if not grouped:
        features = features.flatten(0, 1)
        classes = ClassIndex(make_labels((7, 0, 1, 7), shuffle_seed=1).to(device))
    problem, _ = checked_call(features, classes, None, None, 0.7, 3.0, reduction)
    chosen = choose_backend(backend, device)
    value, gradient = operations.forward(chosen, features, problem, True)
    assert gradient is not None
    together: dict[str, Any] = {
        "value": torch.full_like(value, 7.0),
        "gradient": torch.full_like(gradient, 7.0),
        "means": torch.full_like(operations.centroids(chosen, features, problem), 7.0),
    }
    chosen.fill(features, problem, **together)
    assert torch.equal(together["value"], value)
    assert torch.equal(together["gradient"], gradient)
    assert torch.equal(together["means"], operations.centroids(chosen, features, problem))


def test_the_native_core_names_what_a_call_lacks() -> None:
    native = pytest.importorskip("cmikernels._native")
    with pytest.raises(KeyError, match="features"):
        native.cpu_cmi({}, 1)
    with pytest.raises(KeyError, match="rows"):
        native.cpu_cmi({"features": 0}, 1)


@pytest.mark.parametrize(("current", "made_current"), [(1, []), (0, [1])])
def test_a_gpu_is_made_current_only_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, current: int, made_current: list[int]
) -> None:
    entered: list[int] = []

    def make_current(gpu: int) -> nullcontext[None]:
        entered.append(gpu)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", make_current)
    features: Any = SimpleNamespace(get_device=lambda: 1)
    problem, _ = checked_call(FEATURES, None, None, None, 1.0, 1.0, "mean")
    ran = []
    operations.on_gpu(lambda *arguments: ran.append(arguments))(features, problem)
    assert len(ran) == 1
    assert entered == made_current
