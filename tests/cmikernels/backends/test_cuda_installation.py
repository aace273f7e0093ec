"""What stands in the way of the CUDA kernels: the build, the driver, the GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmikernels.backends import cuda
from tests.support.tables import GPU

if GPU:
    pytest.skip("backend='cuda' is the GPU here", allow_module_level=True)
pytest.importorskip("cmikernels._emulated")


@pytest.mark.parametrize(
    ("setting", "emulating"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_the_environment_asks_for_emulation(
    monkeypatch: pytest.MonkeyPatch, setting: str, emulating: bool
) -> None:
    monkeypatch.setenv("CMIKERNELS_EMULATE_CUDA", setting)
    assert cuda._emulating.__wrapped__() is emulating


@pytest.fixture
def installation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the kernels were not emulated but built, and torch and the GPU were such."""

    def pretend(
        *,
        native: str | None = "the native core",
        kernels: bool = True,
        runtime: int = 13_000,
        driver: int = 13_010,
        gpu: bool = True,
        hip: str | None = None,
        capabilities: tuple[tuple[int, int], ...] = ((9, 0),),
        architectures: str = "80-real 90",
    ) -> None:
        info = {"driver": driver, "runtime": runtime, "architectures": architectures}
        core = SimpleNamespace(cuda_info=lambda: info) if kernels else None
        monkeypatch.setattr(cuda, "_emulating", lambda: False)
        monkeypatch.setattr(cuda, "_gpu_obstacle", cuda._gpu_obstacle.__wrapped__)
        monkeypatch.setattr(cuda, "_core", lambda: core)
        monkeypatch.setattr(cuda, "native", native)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])

    return pretend


def test_nothing_stands_in_the_way_of_a_gpu(installation: Callable[..., None]) -> None:
    installation()
    assert cuda.obstacle("cuda") is None


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ({"native": None, "kernels": False}, "the native extension is not built ("),
        (
            {"kernels": False},
            "the native extension was built without CUDA kernels, because nvcc of CUDA 12.8",
        ),
        ({"hip": "6.0"}, "it computes on NVIDIA GPUs only"),
        ({"gpu": False}, "torch sees no GPU"),
        (
            {"driver": 12_080},
            "the kernels need a driver that knows CUDA 13.0, this one knows 12.8; update it",
        ),
        (
            {"runtime": 12_080, "driver": 12_020},
            "the kernels need a driver that knows CUDA 12.4, this one knows 12.2; update it",
        ),
        (
            {"architectures": "90", "capabilities": ((8, 0),)},
            "the kernels were built for 90, this GPU has compute capability 8.0; build them for it "
            "with CUDAARCHS=80",
        ),
        (
            {"capabilities": ((7, 0), (7, 5))},
            "compute capability 8.0 (Ampere) or newer is needed, this GPU has 7.5",
        ),
    ],
    ids=[
        "no native core",
        "no kernels",
        "AMD",
        "no GPU",
        "old driver",
        "driver of 12.2",
        "no code for it",
        "old GPU",
    ],
)
def test_what_stands_in_the_way_is_said(
    installation: Callable[..., None], differences: dict[str, Any], text: str
) -> None:
    installation(**differences)
    found = cuda.obstacle("cuda")
    assert found is not None
    assert found.startswith(text)


def test_a_forked_process_is_told_what_torch_says(
    installation: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    installation()
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    assert cuda.obstacle("cuda") == "Cannot re-initialize CUDA in forked subprocess"


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80-real", 80, True),
        ("80-real", 86, True),
        ("80-real", 90, False),
        ("86-real", 80, False),
        ("80-real 90", 110, True),
        ("90-virtual", 90, True),
        ("90-virtual", 80, False),
        ("120", 90, False),
        ("native", 90, True),
    ],
)
def test_code_serves_its_own_family_and_ptx_all_that_are_newer(
    architectures: str, capability: int, runs: bool
) -> None:
    assert cuda._has_code(architectures, capability) is runs


def test_one_gpu_of_several_is_enough(installation: Callable[..., None]) -> None:
    installation(capabilities=((7, 5), (9, 0)))
    assert cuda.obstacle("cuda") is None


def test_a_newer_minor_version_than_the_drivers_will_do(
    installation: Callable[..., None],
) -> None:
    installation(runtime=13_010, driver=13_000)
    assert cuda.obstacle("cuda") is None


def test_other_devices_are_refused(installation: Callable[..., None]) -> None:
    installation()
    assert cuda.obstacle("mps") == "it computes on NVIDIA GPUs only"
    on_cpu = "it computes on GPUs (and for tests on the CPU, under CMIKERNELS_EMULATE_CUDA=1)"
    assert cuda.obstacle("cpu") == on_cpu


def test_emulation_needs_a_build_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_core", lambda: None)
    expected = "the native extension was built without the emulated kernels"
    assert cuda.obstacle("cpu") == expected
