from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmidd.methods.characteristic import characteristic_functions, directions, distances
from cmidd.seeds import generator


def drawn(*shape: int, name: str = "rows") -> Tensor:
    return torch.randn(shape, generator=generator(name, *shape)).double()


def by_hand(u: Tensor, v: Tensor, t: Tensor, a: float, b: float) -> float:
    """The published formula in complex numbers, frequency by frequency."""
    roots = []
    for frequency in t:
        p, q = (
            sum(cmath.exp(1j * float(frequency @ row)) for row in rows) / len(rows)
            for rows in (u, v)
        )
        phase = 2 * (abs(p) * abs(q) - (p * q.conjugate()).real)
        roots.append(math.sqrt(a * (abs(p) - abs(q)) ** 2 + b * max(phase, 1e-12)))
    return sum(roots) / len(roots)


def ours(u: Tensor, v: Tensor, t: Tensor, a: float = 0.5, b: float = 0.5) -> Tensor:
    p, q = (characteristic_functions(rows, [len(rows)], t) for rows in (u, v))
    return distances(p, q, a, b)[0]


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.9, 0.1), (0.0, 1.0), (1.0, 0.0)])
def test_the_distance_is_the_published_formula(a: float, b: float) -> None:
    u, v, t = drawn(7, 5), drawn(3, 5), drawn(40, 5)
    assert ours(u, v, t, a, b).item() == pytest.approx(by_hand(u, v, t, a, b), rel=1e-10)


def test_with_equal_weights_it_is_the_mean_distance_in_the_plane() -> None:
    u, v, t = drawn(7, 5), drawn(3, 5), drawn(40, 5)
    p, q = (characteristic_functions(rows, [len(rows)], t)[0] for rows in (u, v))
    expected = (0.5**0.5) * torch.linalg.vector_norm(p - q, dim=1).mean()
    torch.testing.assert_close(ours(u, v, t), expected, rtol=1e-9, atol=0)


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_classes_are_what_they_are_alone(counts: list[int]) -> None:
    rows, t = drawn(sum(counts), 3), drawn(6, 3, name="t")
    found = characteristic_functions(rows, counts, t)
    for of_class, part in zip(found, torch.split(rows, counts), strict=True):
        alone = characteristic_functions(part, [len(part)], t)[0]
        torch.testing.assert_close(of_class, alone, rtol=1e-12, atol=1e-14)


def test_many_rows_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, t = drawn(6, 3), drawn(10, 3, name="t")
    whole = characteristic_functions(rows, [2, 4], t)
    monkeypatch.setattr("cmidd.methods.characteristic._AT_ONCE", 13)
    found = characteristic_functions(rows, [2, 4], t)
    torch.testing.assert_close(found, whole, rtol=1e-13, atol=0)


def gradient(of: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    x = features.clone().requires_grad_()
    value = of(x)
    assert value.isfinite().all()
    return torch.autograd.grad(value.sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize(
    "features",
    [
        torch.ones(1, 4),
        torch.zeros(1, 4),
        torch.zeros(3, 4),
        torch.tensor([[0.0] * 4, [1.0, 2.0, 3.0, 4.0]]),
        torch.full((2, 4), 1e-30),
        torch.full((2, 4), 1e-20),
        torch.full((2, 4), 1e-12),
        torch.full((2, 4), 1e30),
        torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]),
    ],
    ids=["one", "zero", "zeros", "a zero", "small", "1e-20", "1e-12", "large", "opposite"],
)
def test_derivatives_are_finite(
    features: Tensor, weights: tuple[float, float], dtype: torch.dtype
) -> None:
    features = features.to(dtype)
    # The last frequency makes the two opposite rows cancel: their function is 0 there.
    quarter = torch.tensor([[torch.pi / 2, 0.0, 0.0, 0.0]])
    t = torch.cat([drawn(5, 4, name="t"), torch.zeros(1, 4), quarter]).to(dtype)
    target = characteristic_functions(directions(features), [len(features)], t)
    for aim in (target, torch.zeros_like(target), torch.ones_like(target)):

        def of(x: Tensor, aim: Tensor = aim) -> Tensor:
            found = characteristic_functions(directions(x), [len(x)], t)
            return distances(found, aim, *weights)

        assert gradient(of, features).isfinite().all()


def test_what_is_equal_does_not_move() -> None:
    features, t = drawn(4, 5), drawn(30, 5, name="t")
    target = characteristic_functions(directions(features), [4], t)

    def of(x: Tensor) -> Tensor:
        return distances(characteristic_functions(directions(x), [4], t), target, 0.5, 0.5)

    assert torch.equal(gradient(of, features), torch.zeros_like(features))
    assert of(features).item() == pytest.approx((0.5e-12) ** 0.5)


def test_directions_have_length_one_and_a_zero_stays() -> None:
    rows = torch.cat([drawn(3, 4), torch.zeros(1, 4).double()])
    found = directions(rows)
    torch.testing.assert_close(found[:3], rows[:3] / rows[:3].norm(dim=1, keepdim=True))
    assert not found[3].any()
