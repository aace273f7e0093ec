"""Which backends there are, which one serves a call, and how to ask for another."""

from __future__ import annotations

import os

import pytest
import torch

from cmikernels import BackendStatus, available_backends, backends, cmi_value_and_grad, fused_cmi
from cmikernels.backends import choose_backend
from tests.tables import BACKENDS, DEVICE_OF

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


def test_the_fastest_that_can_run_serves_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMIKERNELS_BACKEND", raising=False)
    fastest = next(name for name in BACKENDS if DEVICE_OF[name] == "cpu")
    assert fastest == choose_backend(None, "cpu").NAME


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


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.cpu, "_native", None)
    monkeypatch.setattr(backends.cpu, "_IMPORT_ERROR", "no such module", raising=False)
    status = available_backends()["cpu"]
    assert not status.available
    assert "no such module" in status.detail
    with pytest.raises(ValueError, match=r"backend: 'cpu' cannot run .*not built.*no such module"):
        fused_cmi(FEATURES, backend="cpu")


def test_without_the_native_kernel_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fused_cmi(FEATURES, backend="reference")
    monkeypatch.setattr(backends.cpu, "_native", None)
    monkeypatch.setattr(backends.cpu, "_IMPORT_ERROR", "no such module", raising=False)
    monkeypatch.delenv("CMIKERNELS_BACKEND", raising=False)
    assert torch.equal(fused_cmi(FEATURES), expected)


def test_every_public_function_takes_a_backend(backend: str) -> None:
    features = FEATURES.to(DEVICE_OF[backend])
    value, _ = cmi_value_and_grad(features, backend=backend)
    assert torch.equal(value, fused_cmi(features, backend=backend))
