"""The Triton kernels of `norm_act_pool`, interpreted where there is no GPU: small shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cmikernels import norm_act_pool
from tests.cmikernels.norm.test_norm_act_pool import (
    Case,
    assert_same,
    first_order,
    make,
    plain,
    second_order,
)
from tests.support.tables import DEVICE_OF

pytest.importorskip("triton")
from cmikernels.norm import plan

DEVICE = DEVICE_OF["triton"]


@pytest.fixture(params=["held", "swept"])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Groups in registers, or swept by tiles of a part of them."""
    plan.make_plan.cache_clear()
    if request.param == "swept":
        monkeypatch.setattr(plan, "_HELD", (1, 1, 1))
        monkeypatch.setattr(plan, "_SWEPT", 64)
    yield
    plan.make_plan.cache_clear()


def ours(case: Case, groups: int, activation: str, pool: int) -> Tensor:
    x, weight, bias, residual = case
    return norm_act_pool(
        x, weight, bias, groups, activation, pool, residual=residual, backend="triton"
    )


def laid_out(case: Case, last: bool) -> Case:
    form = torch.channels_last if last else torch.contiguous_format
    x, weight, bias, residual = (None if t is None else t.to(DEVICE) for t in case)
    assert x is not None
    added = None if residual is None else residual.contiguous(memory_format=form)
    return x.contiguous(memory_format=form), weight, bias, added


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("order", [first_order, second_order])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (6, 2, 5, 7)], ids=str)
def test_values_and_derivatives_are_those_of_plain_operations(
    shape: tuple[int, int, int, int], last: bool, pool: int, order: Callable[..., list[Tensor]]
) -> None:
    case = laid_out(make(shape, rows=2, residual=last), last)
    options = shape[1], "relu" if pool == 1 else "leakyrelu", pool
    assert_same(order(ours, case, *options), order(plain, case, *options), 1e-12)


def test_everything_has_the_layout_of_the_maps() -> None:
    x, weight, bias, residual = laid_out(make((3, 3, 4, 6), residual=True), True)
    assert residual is not None
    given = x.requires_grad_(), residual.requires_grad_()
    out = ours((x, weight, bias, residual), 3, "relu", 2)
    gradients = torch.autograd.grad(out.sin().sum(), given, create_graph=True)
    (again,) = torch.autograd.grad(gradients[0].square().sum(), x)
    for made in (out, *gradients, again):
        assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("order", [first_order, second_order])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_worse_than_torchs(
    dtype: torch.dtype, order: Callable[..., list[Tensor]]
) -> None:
    case = laid_out(make((4, 2, 9, 8), dtype=dtype, residual=True), True)
    wide: Case = tuple(None if t is None else t.double() for t in case)  # type: ignore[assignment]
    exact = order(plain, wide, 2, "none", 2)

    def error(results: list[Tensor]) -> float:
        return sum(
            float((found.double() - c).detach().norm() / c.detach().norm())
            for found, c in zip(results, exact, strict=True)
        )

    found = order(ours, case, 2, "none", 2)
    assert all(each.dtype == dtype for each in found)
    by_torch = order(plain, case, 2, "none", 2)
    assert error(found) <= 1.25 * error(by_torch) + torch.finfo(dtype).eps


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e37])
def test_finite_maps_give_finite_results(value: float) -> None:
    case = laid_out(make((2, 2, 4, 4), rows=1, dtype=torch.float32), False)
    for x in (case[0] * value, torch.full_like(case[0], value)):
        for order in (first_order, second_order):
            for found in order(ours, (x, *case[1:]), 2, "relu", 2):
                assert found.isfinite().all()


@pytest.mark.usefixtures("_tile")
@pytest.mark.parametrize("value", [1e19, 1e36])
def test_large_maps_are_normalised(value: float) -> None:
    case = laid_out(make((2, 2, 4, 4), rows=1, dtype=torch.float32), False)
    expected = ours((case[0].double(), None, None, None), 2, "none", 1)
    found = ours((case[0] * value, None, None, None), 2, "none", 1)
    assert (found - expected).abs().max() < 1e-4


def test_vmap_over_maps_and_parameters() -> None:
    case = laid_out(make((3, 3, 4, 4), rows=2), False)
    x, weight, bias, _ = case
    assert weight is not None
    assert bias is not None
    maps, weights, biases = (torch.stack([t, 2 * t]) for t in (x, weight, bias))

    def norm_of_gradient(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def loss(*given: Tensor) -> Tensor:
            return ours((*given, None), 3, "leakyrelu", 2).sin().sum()  # type: ignore[arg-type]

        gradients = torch.func.grad(loss, argnums=(0, 1, 2))(x, weight, bias)
        return sum((g.square().sum() for g in gradients), torch.zeros((), device=DEVICE))

    both = torch.func.grad(norm_of_gradient, argnums=(0, 1))
    mapped = torch.func.vmap(both)(maps, weights, biases)
    for k in range(2):
        one = both(maps[k], weights[k], biases[k])
        assert_same([each[k] for each in mapped], list(one), 1e-12)


def test_what_comes_in_may_be_missing() -> None:
    x, weight, bias, residual = laid_out(make((3, 3, 4, 4), rows=2, residual=True), False)
    assert weight is not None
    assert bias is not None
    assert residual is not None
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    for k in range(4):  # of the gradients only one is differentiated
        results = []
        for block in (ours, plain):
            out = block((x, weight, bias, residual), 3, "leakyrelu", 2)
            gradient = torch.autograd.grad(out.sin().sum(), leaves, create_graph=True)[k]
            results.append(
                list(torch.autograd.grad(gradient.square().sum(), leaves, materialize_grads=True))
            )
        assert_same(results[0], results[1], 1e-12)


def test_bits_are_the_same_each_time() -> None:
    case = laid_out(make((4, 2, 6, 6), rows=5, dtype=torch.float32), False)
    first, second = (second_order(ours, case, 2, "relu", 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_graph_under_compile() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 3, 4, 4, device=DEVICE, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return norm_act_pool(x, backend="triton").square().sum()

    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (expected,), (found,) = (torch.autograd.grad(each(x), x) for each in (loss, fast))
    torch._dynamo.reset()
    assert torch.equal(found, expected)


def test_no_rows_are_no_launch() -> None:
    case = laid_out(make((3, 3, 4, 4), rows=0), False)
    found = first_order(ours, case, 3, "relu", 2)
    assert all(not each.any() for each in found)


def test_what_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match="backend: 'triton' cannot run on a tensor of device cpu"):
        norm_act_pool(torch.ones(1, 2048, 2, 2), groups=1, backend="triton")
