"""`norm_act_pool` on a GPU: usual sizes, and torch around it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cmikernels import NormActPool, norm_act_pool
from cmikernels.norm.operations import choose_backend
from tests.cmikernels.norm.test_norm_act_pool import (
    Case,
    first_order,
    make,
    ours,
    plain,
    second_order,
)
from tests.support.gpu_calls import needs_memory
from tests.support.tables import GPU

if not GPU:
    pytest.skip("needs a GPU that torch.cuda can use", allow_module_level=True)

# Channels, groups, height, width.
SHAPES = [(128, 128, 32, 32), (128, 128, 8, 8), (64, 64, 31, 29), (64, 4, 32, 32), (8, 8, 130, 200)]


def on_gpu(case: Case, last: bool) -> Case:
    form = torch.channels_last if last else torch.contiguous_format
    x, weight, bias, residual = (None if t is None else t.cuda() for t in case)
    assert x is not None
    added = None if residual is None else residual.contiguous(memory_format=form)
    return x.contiguous(memory_format=form), weight, bias, added


def error(results: list[Tensor], exact: list[Tensor]) -> float:
    """Of all results, each relative to the size of its numbers."""
    return sum(
        float((found.double() - c).detach().norm() / c.detach().norm())
        for found, c in zip(results, exact, strict=True)
    )


@pytest.mark.parametrize("order", [first_order, second_order])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounding_is_no_worse_than_torchs(
    shape: tuple[int, int, int, int],
    pool: int,
    last: bool,
    dtype: torch.dtype,
    order: Callable[..., list[Tensor]],
) -> None:
    case = on_gpu(make(shape, dtype=dtype, residual=pool == 1), last)
    assert choose_backend(None, case[0], shape[1]) == "triton"
    wide: Case = tuple(None if t is None else t.double() for t in case)  # type: ignore[assignment]
    exact = order(plain, wide, shape[1], "none", pool)
    found = order(ours, case, shape[1], "none", pool)
    by_torch = order(plain, case, shape[1], "none", pool)
    assert error(found, exact) <= 1.25 * error(by_torch, exact) + torch.finfo(dtype).eps


@pytest.mark.parametrize("last", [False, True])
def test_bits_are_the_same_each_time(last: bool) -> None:
    case = on_gpu(make((128, 128, 32, 32), rows=300, dtype=torch.float32), last)
    first = second_order(ours, case, 128, "relu", 2)
    for _ in range(5):
        again = second_order(ours, case, 128, "relu", 2)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_one_graph_by_inductor() -> None:
    block = NormActPool(4, 4, "leakyrelu").cuda()
    x = torch.randn(3, 4, 8, 8, device="cuda", requires_grad=True)
    fast = torch.compile(block, fullgraph=True)
    expected = torch.autograd.grad(block(x).square().sum(), (x, *block.parameters()))
    found = torch.autograd.grad(fast(x).square().sum(), (x, *block.parameters()))
    torch._dynamo.reset()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_graph_replays_all_orders() -> None:
    x = torch.randn(4, 8, 16, 16, device="cuda", requires_grad=True)

    def step() -> Tensor:
        (gradient,) = torch.autograd.grad(norm_act_pool(x).sin().sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(gradient.square().sum(), x)
        return again

    expected = step()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    captured.detach().zero_()
    graph.replay()
    assert torch.equal(captured, expected)


def test_more_than_2_to_the_31_numbers() -> None:
    needs_memory(14 << 30)
    x = torch.randn(1 << 14, 128, 32, 33, device="cuda", dtype=torch.bfloat16)
    out = norm_act_pool(x)
    assert torch.equal(out[-3:], norm_act_pool(x[-3:]))
