"""Parts summed out of a trace, and the convolutions of a step made again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import record_function

from bench.loops.floor import convolutions_of
from bench.loops.parts import REST, Event, Part, parts_of, profiled, trace_of


def event(cat: str, name: str, ts: float, dur: float, correlation: int | None = None) -> Event:
    args = {} if correlation is None else {"correlation": correlation}
    return {"cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


ON_CPU = [
    event("user_annotation", "a", 10, 100),
    event("user_annotation", "Optimizer.step", 20, 30),  # within a: no part of its own
    event("cpu_op", "aten::convolution", 60, 20),
    event("cpu_op", "aten::convolution_backward", 65, 5),  # within the one before
    event("user_annotation", "b", 120, 10),
    event("user_annotation", "a", 140, 50),
    event("cpu_op", "aten::convolution", 195, 4),
    event("cpu_op", "aten::add", 200, 10),
    {"ph": "M", "name": "process_name"},
]


def test_parts_on_a_cpu_are_what_their_ranges_last() -> None:
    found = parts_of(ON_CPU)
    assert found.keys() == {"a", "b", REST}
    assert found["a"].seconds == pytest.approx(150e-6)
    assert found["a"].convolutions == pytest.approx(20e-6)
    assert found["b"] == Part(pytest.approx(10e-6), 0.0)  # type: ignore[arg-type]
    assert found[REST].seconds == pytest.approx((210 - 10 - 160) * 1e-6)
    assert found[REST].convolutions == pytest.approx(4e-6)


def test_parts_on_a_gpu_are_the_kernels_launched_meanwhile() -> None:
    """By any thread: the one of autograd launches for the range of another."""
    found = parts_of([
        *ON_CPU,
        event("cuda_runtime", "cudaLaunchKernel", 30, 2, 1),
        event("cuda_runtime", "cudaLaunchKernel", 62, 2, 2),
        event("cuda_driver", "cuLaunchKernel", 125, 2, 3),
        event("cuda_runtime", "cudaMemcpyAsync", 135, 2, 4),
        event("kernel", "add", 300, 7, 1),
        event("kernel", "conv", 310, 11, 2),
        event("kernel", "triton", 330, 13, 3),
        event("gpu_memcpy", "Memcpy DtoH", 350, 17, 4),
    ])  # fmt: skip
    in_microseconds = {
        name: (round(part.seconds * 1e6), round(part.convolutions * 1e6))
        for name, part in found.items()
    }
    assert in_microseconds == {"a": (18, 11), "b": (13, 0), REST: (17, 0)}


def test_ranges_of_a_real_profile_are_summed() -> None:
    network = nn.Conv2d(3, 4, 3)
    images = torch.randn(2, 3, 16, 16).requires_grad_()

    def step() -> None:
        for _ in range(2):
            with record_function("forward"):
                loss = network(images).square().sum()
        with record_function("backward"):
            torch.autograd.grad(loss, images)

    step()
    found = parts_of(trace_of(step))
    assert found.keys() == {"forward", "backward", REST}
    assert 0 < found["forward"].convolutions < found["forward"].seconds
    assert 0 < found["backward"].convolutions < found["backward"].seconds
    assert found[REST].convolutions == 0


def test_steps_are_profiled_until_the_time_is_over() -> None:
    made: list[int] = []
    calls = (lambda i=i: made.append(i) for i in range(9))
    assert profiled(calls, budget=60.0, most=2).keys() <= {REST}
    assert made == [0, 1]
    profiled(calls, budget=0.0)
    assert made == [0, 1, 2]


def test_the_floor_is_every_convolution_of_a_step_also_of_second_derivatives() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    images = torch.randn(2, 3, 8, 8).requires_grad_()

    def step() -> None:
        loss = network(images).square().sum()
        gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        torch.autograd.grad(torch.stack([g.square().sum() for g in gradients]).sum(), images)

    def convolutions(call: Any) -> tuple[int, int]:
        return sum(e["name"] == "aten::convolution" for e in trace_of(call)), sum(
            e["name"] == "aten::convolution_backward" for e in trace_of(call)
        )

    run = convolutions_of(step)
    assert convolutions(lambda: run(0)) == convolutions(step)
    assert convolutions(step)[1] > 2
