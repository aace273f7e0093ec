"""`norm_act_pool` against torch's operations: values, derivatives, transforms, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cmikernels import NormActPool, norm_act_pool
from cmikernels.norm import compiled
from cmikernels.norm_act_pool import _plain

SLOPES = {"relu": 0.0, "leakyrelu": 0.01, "none": 1.0}
# Channels, groups, height, width.
SHAPES = [(6, 6, 8, 8), (6, 2, 5, 7), (4, 1, 2, 3), (3, 3, 16, 18), (2, 2, 32, 32)]
Case = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def make(
    shape: tuple[int, int, int, int],
    *,
    rows: int = 3,
    dtype: torch.dtype = torch.float64,
    affine: bool = True,
    residual: bool = False,
) -> Case:
    channels, _, height, width = shape
    generator = torch.Generator().manual_seed(channels * height + width)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    x = 2 * draw(rows, channels, height, width) + 1
    weight, bias = (1 + 0.5 * draw(channels), draw(channels)) if affine else (None, None)
    return x, weight, bias, draw(rows, channels, height, width) if residual else None


def ours(case: Case, groups: int, activation: str, pool: int) -> Tensor:
    x, weight, bias, residual = case
    return norm_act_pool(x, weight, bias, groups, activation, pool, residual=residual)


def plain(case: Case, groups: int, activation: str, pool: int) -> Tensor:
    x, weight, bias, residual = case
    return _plain(x, weight, bias, groups, SLOPES[activation], pool, 1e-5, residual)


def wanting(case: Case) -> Case:
    x, *others = (each if each is None else each.clone().requires_grad_() for each in case)
    assert x is not None
    return x, *others  # type: ignore[return-value]


def first_order(block: Callable[..., Tensor], case: Case, *options: Any) -> list[Tensor]:
    case = wanting(case)
    out = block(case, *options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [t for t in case if t is not None])]


def second_order(block: Callable[..., Tensor], case: Case, *options: Any) -> list[Tensor]:
    """The gradient of a function of all first gradients, as gradient matching takes it."""
    case = wanting(case)
    given = [t for t in case if t is not None]
    out = block(case, *options)
    target = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).requires_grad_()
    gradients = torch.autograd.grad((out.sin() * target).sum(), given, create_graph=True)
    loss = sum(
        (g * torch.linspace(0, 1, g.numel()).to(g).view_as(g)).sin().sum() for g in gradients
    )
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, [*given, target], materialize_grads=True))


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert (a - b).abs().max() <= tolerance * (1 + b.abs().max())


@pytest.mark.parametrize("order", [first_order, second_order])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_derivatives_are_those_of_plain_operations(
    shape: tuple[int, int, int, int],
    affine: bool,
    residual: bool,
    activation: str,
    pool: int,
    order: Callable[..., list[Tensor]],
) -> None:
    case = make(shape, affine=affine, residual=residual)
    options = shape[1], activation, pool
    assert_same(order(ours, case, *options), order(plain, case, *options), 1e-10)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("shape", [(4, 2, 4, 5), (3, 3, 3, 4)])
def test_gradcheck_and_gradgradcheck(shape: tuple[int, int, int, int], pool: int) -> None:
    case = [each for each in wanting(make(shape, rows=2, residual=True)) if each is not None]

    def block(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ours((x, weight, bias, residual), shape[1], "leakyrelu", pool)

    assert torch.autograd.gradcheck(block, case)
    assert torch.autograd.gradgradcheck(block, case)


@pytest.mark.parametrize("order", [first_order, second_order])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] > 2])  # numbers enough
def test_rounding_is_no_worse_than_torchs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, order: Callable[..., list[Tensor]]
) -> None:
    case = make(shape, dtype=dtype, residual=True)
    wide: Case = tuple(None if t is None else t.double() for t in case)  # type: ignore[assignment]
    options = shape[1], "none", 2
    exact = order(plain, wide, *options)

    def error(results: list[Tensor]) -> float:
        """Of all results, each relative to the size of its numbers."""
        return sum(
            float((found.double() - c).detach().norm() / c.detach().norm())
            for found, c in zip(results, exact, strict=True)
        )

    found = order(ours, case, *options)
    assert all(each.dtype == dtype for each in found)
    assert error(found) <= 1.25 * error(order(plain, case, *options)) + torch.finfo(dtype).eps


@given(
    channels=st.integers(1, 5), rows=st.integers(0, 4), height=st.integers(2, 19),
    width=st.integers(2, 19), pool=st.sampled_from([1, 2]), one_group=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_size(
    channels: int, rows: int, height: int, width: int, pool: int, one_group: bool
) -> None:
    shape = channels, 1 if one_group else channels, height, width
    case = make(shape, rows=rows)
    options = shape[1], "relu", pool
    found = first_order(ours, case, *options)
    if rows == 0:  # torch refuses what is empty
        assert all(not each.any() for each in found)
        return
    assert_same(found, first_order(plain, case, *options), 1e-10)


@pytest.mark.parametrize("order", [first_order, second_order])
def test_bits_do_not_depend_on_threads(order: Callable[..., list[Tensor]]) -> None:
    case = make((8, 8, 32, 32), rows=16, dtype=torch.float32)
    usual, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(order(ours, case, 8, "relu", 2))
    finally:
        torch.set_num_threads(usual)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [0.0, 7.0, 1e-30, 1e15, 1e20, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_maps_give_finite_results(value: float, dtype: torch.dtype) -> None:
    case = make((2, 2, 8, 8), dtype=dtype)
    for x in (
        case[0] * value,
        torch.full_like(case[0], value),
        (case[0] * value).contiguous(memory_format=torch.channels_last),
    ):
        for found in (*first_order(ours, (x, *case[1:]), 2, "relu", 2),
                      *second_order(ours, (x, *case[1:]), 2, "relu", 2)):  # fmt: skip
            assert found.isfinite().all()


def test_strides_and_negated_views_do_not_matter() -> None:
    case = make((6, 3, 8, 10), residual=True)
    expected = ours(case, 3, "relu", 2)
    x, weight, bias, residual = case
    assert residual is not None
    assert weight is not None
    negated = torch._neg_view(-x)
    assert torch.equal(ours((negated, weight, bias, residual), 3, "relu", 2), expected)
    spaced = weight.repeat_interleave(2)[::2]
    assert torch.equal(ours((x, spaced, bias, residual), 3, "relu", 2), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "shape", [(32, 32, 6, 7), (64, 64, 9, 17), (96, 3, 4, 4), (37, 37, 5, 6), (6, 2, 32, 32)]
)
def test_channels_last_stay_last(
    shape: tuple[int, int, int, int], residual: bool, pool: int, dtype: torch.dtype
) -> None:
    case = make(shape, residual=residual, dtype=dtype)
    expected = ours(case, shape[1], "leakyrelu", pool)
    x, weight, bias, added = case
    given: Case = x.contiguous(memory_format=torch.channels_last), weight, bias, added
    out = ours(given, shape[1], "leakyrelu", pool)
    assert out.is_contiguous(memory_format=torch.channels_last)
    tolerance = {torch.float64: 1e-13, torch.float32: 3e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (out - expected).abs().max() <= tolerance * (1 + expected.abs().max())
    assert_same(
        first_order(ours, given, shape[1], "relu", pool)[1:],
        first_order(ours, case, shape[1], "relu", pool)[1:],
        1e-13,
    )


def test_vmap_over_maps_and_parameters() -> None:
    x, weight, bias, _ = make((4, 2, 6, 6), rows=5)
    assert weight is not None
    assert bias is not None
    weights, biases = torch.stack([weight, 2 * weight, -weight]), torch.stack([bias] * 3, dim=1)
    maps = torch.stack([x, x + 1, x * x])

    def block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return norm_act_pool(x, weight, bias, 2)

    def both(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        def norm_of_gradient(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            gradients = torch.func.grad(lambda *all_: block(*all_).sin().sum(), argnums=(0, 1, 2))(
                x, weight, bias
            )
            return sum((g.square().sum() for g in gradients), torch.zeros(()))

        return block(x, weight, bias), *torch.func.grad(norm_of_gradient, argnums=(0, 1))(
            x, weight, bias
        )

    for in_dims, arguments in (
        ((0, 0, 1), (maps, weights, biases)),
        ((None, 0, None), (x, weights, bias)),
        ((0, None, None), (maps, weight, bias)),
    ):
        mapped = torch.func.vmap(both, in_dims)(*arguments)
        for k in range(3):
            one = both(*(
                each if dim is None else each.select(dim, k)
                for each, dim in zip(arguments, in_dims, strict=True)
            ))  # fmt: skip
            assert_same([each[k] for each in mapped], list(one), 1e-12)


def test_the_module_is_a_group_norm_with_what_follows() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2))
    block = nn.Sequential(nn.Conv2d(3, 8, 3), NormActPool(8, 8))
    block.load_state_dict(layers.state_dict())
    x = torch.randn(4, 3, 10, 10)
    torch.testing.assert_close(block(x), layers(x))
    state = {name: p.detach() * 2 for name, p in block.named_parameters()}
    out = torch.func.functional_call(block, state, (x,))
    layers.load_state_dict(state)
    torch.testing.assert_close(out, layers(x))
    assert "activation='relu', pool=2" in str(block)


def test_one_graph_under_compile() -> None:
    block = NormActPool(4, 4, "leakyrelu")
    x = torch.randn(3, 4, 8, 8, requires_grad=True)
    fast = torch.compile(block, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(block(x).square().sum(), (x, *block.parameters()))
    found = torch.autograd.grad(fast(x).square().sum(), (x, *block.parameters()))
    torch._dynamo.reset()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_fake_tensors_and_dispatch_modes_are_served() -> None:
    case = make((4, 2, 6, 6), residual=True)
    with FlopCounterMode(display=False):  # a mode that sees every operation
        counted = second_order(ours, case, 2, "relu", 2)
    assert_same(counted, second_order(ours, case, 2, "relu", 2), 0)
    with FakeTensorMode() as mode:
        x = mode.from_tensor(case[0]).requires_grad_()
        assert norm_act_pool(x, groups=2).shape == (3, 4, 3, 3)
        (gradient,) = torch.autograd.grad(norm_act_pool(x).sum(), x, create_graph=True)
        (again,) = torch.autograd.grad(gradient.square().sum(), x)
    assert again.shape == x.shape
    assert isinstance(again, FakeTensor)


def _detached(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument


@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(residual: bool) -> None:
    x, weight, bias, added = wanting(make((4, 2, 6, 6), residual=residual))
    assert weight is not None
    assert bias is not None
    inputs = (
        x,
        added,
        weight.detach()[None].requires_grad_(),
        bias.detach()[None],
        2,
        0.0,
        2,
        1e-5,
        "cpu",
    )
    grad = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    torch.library.opcheck(compiled.norm_act_pool, inputs)
    torch.library.opcheck(compiled.norm_act_pool_backward, (grad, *inputs))
    constant = [_detached(each) for each in inputs]
    of_dx, *others = compiled.norm_act_pool_backward(grad, *constant)
    cotangents = others if residual else (None, None, None)
    torch.library.opcheck(
        compiled.norm_act_pool_double_backward, (of_dx, *cotangents, grad, *constant)
    )


def test_a_third_derivative_is_refused_but_by_the_reference() -> None:
    x = make((2, 2, 4, 4))[0].requires_grad_()
    for backend in (None, "reference"):
        gradient: Tensor = norm_act_pool(x, backend=backend).sin().sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(gradient.square().sum(), x, create_graph=True)
        if backend:
            torch.autograd.grad(gradient.sum(), x)
        else:
            with pytest.raises(RuntimeError, match="first and second order; take torch's own"):
                torch.autograd.grad(gradient.sum(), x)


def test_forward_mode_and_autocast_work() -> None:
    x, weight, bias, _ = make((4, 4, 6, 6), dtype=torch.float32)
    tangent = torch.func.jvp(lambda x: norm_act_pool(x, weight, bias), (x,), (torch.ones_like(x),))
    assert tangent[1].abs().max() < 1e-5  # the norm takes a constant away
    with torch.autocast("cpu", torch.bfloat16):
        assert norm_act_pool(x.bfloat16(), weight, bias).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 4}, "groups: expected a divisor of the 6 channels, got 4"),
        ({"activation": "gelu"}, "activation: expected one of relu, leakyrelu, none, got 'gelu'"),
        ({"pool": 3}, "pool: expected 2 .means of 2 x 2. or 1 .none., got 3"),
        ({"backend": "cuda"}, "backend: expected None, 'triton' or 'reference', got 'cuda'"),
        ({"eps": 0.0}, "eps: expected a positive number, got 0.0"),
        ({"weight": torch.ones(5)}, r"weight: expected one number for each of the 6 channels"),
        ({"residual": torch.ones(1, 6, 4, 4)}, "residual: expected shape and dtype of x"),
        ({"x": torch.ones(6, 4, 4)}, r"x: expected maps \(N, channels, height, width\), got"),
        ({"x": torch.ones(2, 0, 4, 4)}, r"x: expected maps \(N, channels, height, width\), got"),
        ({"x": torch.ones(2, 6, 1, 4)}, "pool: expected maps of 2 x 2 or more, got 1 x 4"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        norm_act_pool(**{"x": torch.ones(2, 6, 4, 4), **options})
