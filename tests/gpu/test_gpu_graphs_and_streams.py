"""What only a GPU can show of a call: graphs, streams, waits, launches, another device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cmikernels import ClassIndex, class_centroids, cmi_value_and_grad, fused_cmi
from tests.support.gpu_calls import HOW, make_call, value_and_gradient
from tests.support.tables import (
    GPU,
    REDUCTIONS,
    make_features,
)

if not GPU:
    pytest.skip("needs a GPU that torch.cuda can use", allow_module_level=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("how", HOW)
def test_a_captured_graph_replays_the_eager_bits(
    backend: str, call: tuple[Tensor, ClassIndex | None], reduction: str
) -> None:
    z, classes = call
    options: dict[str, Any] = {"reduction": reduction, "weight": 3.0}
    size = () if reduction == "mean" else z.shape[:-1]
    grad_value = torch.ones(size, device="cuda")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            value_and_gradient(backend, z, classes, grad_value, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = value_and_gradient(backend, z, classes, grad_value, **options)
    for seed, incoming in ((1, 1.0), (2, 2.5), (3, 1.0)):
        fresh = make_features(z.shape[:-1], z.shape[-1], seed=seed)
        with torch.no_grad():
            z.copy_(fresh)
        grad_value.fill_(incoming)
        graph.replay()
        eager = value_and_gradient(
            backend, fresh.cuda().requires_grad_(), classes, grad_value, **options
        )
        assert torch.equal(captured[0], eager[0])
        assert torch.equal(captured[1], eager[1])


A_SECOND = 2_000_000_000  # in cycles


def warm_stream(backend: str, z: Tensor, classes: ClassIndex | None) -> torch.cuda.Stream:
    """A stream with the call's kernels loaded and memory for its results in the allocator."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        value_and_gradient(backend, z, classes)
    torch.cuda.synchronize()
    return stream


@pytest.mark.parametrize("how", HOW)
def test_a_call_comes_after_what_its_stream_has_queued(
    backend: str, call: tuple[Tensor, ClassIndex | None]
) -> None:
    z, classes = call
    stream = warm_stream(backend, z, classes)
    late = torch.zeros_like(z).requires_grad_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(A_SECOND)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            late.copy_(z)
        value, gradient = value_and_gradient(backend, late, classes)
        done = stream.record_event()
    assert not done.query(), "the call took as long as the sleep: nothing is shown of its order"
    torch.cuda.synchronize()
    expected = value_and_gradient(backend, z, classes)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("how", HOW)
def test_a_call_on_a_side_stream_does_not_wait_for_the_default_stream(
    backend: str, call: tuple[Tensor, ClassIndex | None]
) -> None:
    z, classes = call
    stream = warm_stream(backend, z, classes)
    torch.cuda._sleep(A_SECOND)  # type: ignore[no-untyped-call]
    blocked = torch.cuda.current_stream().record_event()
    with torch.cuda.stream(stream):
        value_and_gradient(backend, z, classes)
    stream.synchronize()
    assert not blocked.query()


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """A function from whose call on torch refuses to wait for the GPU."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("incoming", [1.0, -2.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", HOW)
def test_nothing_waits_for_the_gpu(
    backend: str,
    call: tuple[Tensor, ClassIndex | None],
    reduction: str,
    incoming: float,
    waiting_is_an_error: Callable[[], None],
) -> None:
    z, classes = call
    value = fused_cmi(z, classes, reduction=reduction, backend=backend)
    grad_value = torch.full_like(value, incoming)
    waiting_is_an_error()
    value_and_gradient(backend, z, classes, grad_value, reduction=reduction)
    fused_cmi(z.detach(), classes, reduction=reduction, backend=backend)
    cmi_value_and_grad(z, classes, reduction=reduction, backend=backend)
    class_centroids(z.detach(), classes, backend=backend)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("how", HOW)
def test_given_centroids_do_not_wait_for_the_gpu_either(
    backend: str,
    call: tuple[Tensor, ClassIndex | None],
    waiting_is_an_error: Callable[[], None],
) -> None:
    z, classes = call
    centroids = class_centroids(z.detach(), classes, backend=backend)
    waiting_is_an_error()
    value_and_gradient(backend, z, classes, centroids=centroids)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_waiting_for_the_gpu_would_be_noticed(waiting_is_an_error: Callable[[], None]) -> None:
    """What the tests above rely on."""
    number = torch.ones((), device="cuda")
    waiting_is_an_error()
    with pytest.raises(RuntimeError, match="synchronizing"):
        number.item()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(("current", "other"), [(0, 1), (1, 0)])
def test_another_gpu_than_the_current_one(
    backend: str, call: tuple[Tensor, ClassIndex | None], current: int, other: int
) -> None:
    z, classes = call
    expected = value_and_gradient(backend, z, classes)
    there = z.detach().to(f"cuda:{other}").requires_grad_()
    classes_there = None if classes is None else classes.to(there.device)
    with torch.cuda.device(current):
        value, gradient = value_and_gradient(backend, there, classes_there)
        assert torch.cuda.current_device() == current
    assert value.device == gradient.device == there.device
    torch.testing.assert_close(value.to(z.device), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.to(z.device), expected[1])


def kernels_of(call: Callable[[], object], trace: Path) -> list[str]:
    """Names of the kernels that a call launches; copies and fills by the driver are none."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "kernel"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shape", [(10, 10, 512), (100, 10, 512), (10, 50, 512)], ids=str)
def test_forward_and_backward_of_a_small_call_are_few_launches(
    backend: str, shape: tuple[int, int, int], how: str, tmp_path: Path
) -> None:
    z, classes = make_call(shape, how)

    def step() -> None:
        z.grad = None
        torch.autograd.backward(fused_cmi(z, classes, backend=backend))

    step()
    kernels_of(step, tmp_path / "first.json")  # a profiler just started may see nothing
    kernels = kernels_of(step, tmp_path / "second.json")
    if not kernels:
        pytest.skip("the profiler sees no kernels on this machine")
    # torch itself fills the gradient that the loss starts with, by a kernel of that name.
    ours = [name for name in kernels if "FillFunctor" not in name]
    assert 1 <= len(ours) <= (2 if backend == "cuda" else 3), ours
