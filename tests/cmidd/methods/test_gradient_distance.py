from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.plain.dc import distance
from cmidd.methods.gradient_distance import GradientDistance
from cmidd.options.idc import METRICS
from cmidd.seeds import generator
from tests.support.compare import relative_error

SHAPES = {"conv": (4, 2, 3, 3), "bias": (4,), "norm": (4, 5, 5), "head": (3, 16)}
over_metrics = pytest.mark.parametrize("metric", METRICS)


def parameters(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape) for name, shape in shapes.items()}


def gradients(
    classes: int, shapes: dict[str, tuple[int, ...]] = SHAPES, words: str = ""
) -> dict[str, Tensor]:
    draws = generator("gradients", words)
    made = {}
    for name, shape in shapes.items():
        made[name] = torch.randn(classes, *shape, generator=draws, dtype=torch.float64)
    return made


def ours(metric: str, synthetic: dict[str, Tensor], real: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Value, and derivatives of the parameters that take part, flattened and joined."""
    of = GradientDistance(metric, {name: g[0] for name, g in real.items()})
    flat = [torch.cat([side[n].flatten(1) for n in of.names], 1) for side in (synthetic, real)]
    return of(flat[0], flat[1])


def plain(metric: str, synthetic: dict[str, Tensor], real: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The plain formula class by class, and what autograd makes of it; zero where it takes none."""
    leaves = {name: g.clone().requires_grad_() for name, g in synthetic.items()}
    classes = range(len(next(iter(real.values()))))
    value = torch.stack(
        [
            distance([g[c] for g in leaves.values()], [g[c] for g in real.values()], metric)
            for c in classes
        ]
    ).sum()
    value.backward()  # type: ignore[no-untyped-call]
    taken = [g.grad.flatten(1) for g in leaves.values() if g.grad is not None]
    return value.detach(), torch.cat(taken, 1)


shapes_of_networks = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 5)),
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    ),
    max_size=5,
)


@over_metrics
@given(
    shapes=shapes_of_networks,
    head=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    classes=st.integers(1, 4),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_value_and_derivative_are_the_plain_formulas_and_autograds(
    metric: str,
    shapes: list[tuple[int, ...]],
    head: tuple[int, int],
    classes: int,
    scale: float,
) -> None:
    named = {str(i): shape for i, shape in enumerate([*shapes, head])}
    synthetic, real = gradients(classes, named, "synthetic"), gradients(classes, named, "real")
    synthetic = {name: scale * g for name, g in synthetic.items()}
    got, expected = ours(metric, synthetic, real), plain(metric, synthetic, real)
    # Where s and r are nearly parallel numbers of one sign, 1 - cos is the rounding of 1.
    torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-10, atol=1e-12 / scale)


@over_metrics
@pytest.mark.parametrize("zero", ["synthetic", "real", "both"])
def test_zero_gradients_give_finite_numbers(metric: str, zero: str) -> None:
    sides = [gradients(2, words=side) for side in ("synthetic", "real")]
    for side, gradient in zip(("synthetic", "real"), sides, strict=True):
        if zero in (side, "both"):
            for g in gradient.values():
                g.zero_()
    value, derivative = ours(metric, *sides)
    assert value.isfinite()
    assert derivative.isfinite().all()
    if metric in ("rows", "cosine"):
        assert not derivative.any()
        blocks = GradientDistance(metric, parameters(SHAPES)).blocks
        assert value == 2 * sum(rows for rows, _ in blocks)


def test_a_dead_row_counts_one_and_moves_nothing_while_others_do() -> None:
    synthetic, real = gradients(1, words="synthetic"), gradients(1, words="real")
    whole, _ = plain("rows", synthetic, real)
    dead = synthetic["conv"][:, 1].clone()
    synthetic["conv"][:, 1] = 0
    value, derivative = ours("rows", synthetic, real)
    one = torch.nn.functional.cosine_similarity(dead.flatten(), real["conv"][:, 1].flatten(), dim=0)
    torch.testing.assert_close(value, whole + one, rtol=1e-6, atol=0)
    by_row = derivative[0, : synthetic["conv"][0].numel()].view(4, -1)
    assert by_row.any(dim=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("metric", ["rows", "cosine"])
def test_cosines_do_not_see_the_scale_of_a_class(metric: str) -> None:
    synthetic, real = gradients(2, words="synthetic"), gradients(2, words="real")
    larger = {name: 100 * g for name, g in synthetic.items()}
    value, derivative = ours(metric, synthetic, real)
    value_of_larger, derivative_of_larger = ours(metric, larger, real)
    torch.testing.assert_close(value_of_larger, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(100 * derivative_of_larger, derivative, rtol=1e-5, atol=1e-6)


def test_rows_see_weights_alone_and_the_others_every_parameter() -> None:
    of = {metric: GradientDistance(metric, parameters(SHAPES)) for metric in METRICS}
    assert of["rows"].names == ["conv", "head"]
    assert of["rows"].blocks == [(4, 18), (3, 16)]
    assert of["mse"].names == of["cosine"].names == list(SHAPES)


@over_metrics
def test_equal_gradients_are_at_distance_zero(metric: str) -> None:
    same = gradients(2)
    value, derivative = ours(metric, same, same)
    assert abs(float(value)) < 1e-5
    assert derivative.abs().max() < 1e-5


@over_metrics
def test_float32_is_near_float64_over_long_rows(metric: str) -> None:
    shapes = {"conv": (128, 128, 3, 3), "head": (10, 2048)}
    sides = [gradients(2, shapes, side) for side in ("synthetic", "real")]
    exact = ours(metric, *sides)
    rounded = ours(metric, *({name: g.float() for name, g in side.items()} for side in sides))
    assert relative_error(rounded[0], exact[0]) < 1e-6
    assert relative_error(rounded[1], exact[1]) < 1e-5


@pytest.mark.parametrize("metric", ["rows", "cosine"])
@pytest.mark.parametrize("apart", [0.03, 0.3])
def test_float32_is_near_float64_where_gradients_are_nearly_the_same(
    metric: str, apart: float
) -> None:
    """Then 1 - cos is small, and an error of a norm is none beside it."""
    shapes = {"conv": (256, 128, 3, 3), "wide": (256, 256, 3, 3), "head": (10, 2048)}
    synthetic, noise = (gradients(1, shapes, side) for side in ("synthetic", "noise"))
    real = {name: each + apart * noise[name] for name, each in synthetic.items()}
    exact = ours(metric, synthetic, real)
    rounded = ours(
        metric, *({name: g.float() for name, g in side.items()} for side in (synthetic, real))
    )
    assert relative_error(rounded[0], exact[0]) < 1e-3
    assert relative_error(rounded[1], exact[1]) < 3e-5


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"metric: expected one of mse, l1, rows, cosine, got 'l2'"
    ):
        GradientDistance("l2", parameters(SHAPES))
