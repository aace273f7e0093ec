"""Facts of CMI's mathematics and agreement with float64, over calls that hypothesis makes up."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import examples
from tests.support.compare import value_and_gradient
from tests.support.oracle import Oracle
from tests.support.tables import DTYPES, INTEGERS, REDUCTIONS, make_features, make_labels

pytestmark = pytest.mark.usefixtures("any_centroids")


@dataclass
class Call:
    """One call, small enough to shrink to something a person can read."""

    sizes: list[int]
    channels: int
    dtype: torch.dtype
    label_dtype: torch.dtype
    spread: float
    offset: float
    temperature: float
    weight: float
    reduction: str
    given_centroids: bool
    shuffled: bool
    seed: int

    @property
    def features(self) -> Tensor:
        plain = make_features(sum(self.sizes), self.channels, self.spread, seed=self.seed)
        return (plain + self.offset).to(self.dtype)

    @property
    def labels(self) -> Tensor:
        return make_labels(self.sizes, self.seed if self.shuffled else None)

    @property
    def centroids(self) -> Tensor | None:
        if not self.given_centroids:
            return None
        logits = make_features(len(self.sizes), self.channels, 2.0, seed=self.seed + 1)
        centroids = logits.softmax(1) * 1.3
        centroids[:, ::5] = 0
        return centroids

    def oracle(self) -> Oracle:
        return Oracle(
            self.features,
            self.labels,
            num_classes=len(self.sizes),
            centroids=self.centroids,
            temperature=self.temperature,
            weight=self.weight,
            reduction=self.reduction,
        )

    def run(self, backend: str, grad_value: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return value_and_gradient(
            backend,
            self.features,
            self.labels.to(self.label_dtype),
            grad_value,
            num_classes=len(self.sizes),
            centroids=self.centroids,
            temperature=self.temperature,
            weight=self.weight,
            reduction=self.reduction,
        )


calls = st.builds(
    Call,
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    channels=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    label_dtype=st.sampled_from(INTEGERS),
    spread=st.floats(1e-3, 8),
    offset=st.sampled_from([0.0, 0.0, 1.0, -40.0]),
    temperature=st.floats(0.5, 5),
    weight=st.just(0.0) | st.floats(1e-3, 10) | st.floats(-10, -1e-3),
    reduction=st.sampled_from(REDUCTIONS),
    given_centroids=st.booleans(),
    shuffled=st.booleans(),
    seed=st.integers(0, 2**31),
)
plain_calls = calls.map(
    lambda call: Call(**{**vars(call), "given_centroids": False, "weight": 1.0})
)


def rounding(call: Call, oracle: Oracle, row_weights: Tensor) -> float:
    """What rounding of d = log P - log Q, made of z and log Q, does to the gradient's norm."""
    eps = 2e-16 if call.dtype == torch.float64 else 1.2e-7
    size = 1 + float(call.features.double().abs().amax()) / call.temperature
    if call.given_centroids:
        size += float(oracle.log_q.abs().amax())
    moved = oracle.p * row_weights[:, None] / call.temperature
    return 4 * eps * size * float(moved.norm())


def test_value_and_gradient_agree_with_float64(backend: str) -> None:
    @examples(backend)
    @given(call=calls, data=st.data())
    def agree(call: Call, data: st.DataObject) -> None:
        oracle = call.oracle()
        expected_value = oracle.value
        seed = data.draw(st.integers(0, 99), label="seed of the incoming gradient")
        generator = torch.Generator().manual_seed(seed)
        grad_value = torch.randn(expected_value.shape, generator=generator)
        value, gradient = call.run(backend, grad_value)
        wide = call.dtype == torch.float64
        rows = sum(call.sizes)
        if rows == 0:
            assert not value.any()
            assert gradient.shape == (0, call.channels)
            return
        # Own centroids: relative, as published. Given ones: sum P d cancels, and the error is d's.
        # Either way no better than the inputs' rounding at z's own size lets it be.
        weights = oracle.row_weights(torch.ones_like(expected_value)).abs()
        slack = rounding(call, oracle, weights) * rows**0.5 * call.temperature
        difference = float((value.double() - expected_value).norm())
        allowed = (1e-12 if wide else 1e-6) * float(expected_value.norm())
        assert difference <= allowed + slack + 1e-13

        expected = oracle.gradient(grad_value)
        row_weights = oracle.row_weights(grad_value).abs().amax().expand(rows)
        allowed = (1e-12 if wide else 1e-5) * float(expected.norm())
        allowed += rounding(call, oracle, row_weights)
        if call.dtype in (torch.bfloat16, torch.float16):
            allowed += 1.01 * float((expected.to(call.dtype).double() - expected).norm())
        assert float((gradient.double() - expected).norm()) <= allowed + 1e-13

    agree()


def test_class_means_lie_between_zero_and_log_n(backend: str) -> None:
    @examples(backend)
    @given(call=plain_calls)
    def lie_between(call: Call) -> None:
        call.reduction = "class"
        value, _ = call.run(backend)
        for class_value, size in zip(value.tolist(), call.sizes, strict=True):
            assert class_value >= -1e-13
            assert class_value <= torch.tensor(max(size, 1.0)).log() * (1 + 1e-6) + 1e-13

    lie_between()


def test_gradient_of_every_row_sums_to_zero(backend: str) -> None:
    @examples(backend)
    @given(call=calls)
    def sums_to_zero(call: Call) -> None:
        _, gradient = call.run(backend)
        if sum(call.sizes) == 0:
            return
        oracle = call.oracle()
        weights = oracle.row_weights(torch.ones_like(oracle.value)).abs()
        eps = torch.finfo(call.dtype).eps
        smallest = torch.finfo(call.dtype).tiny
        entries = eps * gradient.double().norm(dim=1) + smallest
        allowed = call.channels**0.5 * (entries + rounding(call, oracle, weights))
        assert (gradient.double().sum(1).abs() <= allowed).all()

    sums_to_zero()


def test_weight_is_a_factor_on_value_and_gradient(backend: str) -> None:
    @examples(backend)
    @given(call=plain_calls, factor=st.sampled_from([2.0, -4.0, 0.5]))
    def is_a_factor(call: Call, factor: float) -> None:
        value, gradient = call.run(backend)
        call.weight = factor
        weighted_value, weighted_gradient = call.run(backend)
        torch.testing.assert_close(weighted_value, value * factor, rtol=1e-6, atol=1e-12)
        # float16's small gradients have fewer bits than their multiples.
        if call.dtype != torch.float16:
            torch.testing.assert_close(weighted_gradient, gradient * factor, rtol=1e-5, atol=1e-9)

    is_a_factor()


def test_temperature_is_a_division_of_the_features(backend: str) -> None:
    @examples(backend)
    @given(call=calls)
    def is_a_division(call: Call) -> None:
        call.dtype, call.temperature = torch.float64, 2.0
        value, gradient = call.run(backend)
        halved = value_and_gradient(
            backend,
            call.features / 2,
            call.labels,
            num_classes=len(call.sizes),
            centroids=call.centroids,
            weight=call.weight,
            reduction=call.reduction,
        )
        torch.testing.assert_close(value, halved[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(gradient, halved[1] / 2, rtol=1e-9, atol=1e-12)

    is_a_division()


def test_mean_sum_class_and_none_tell_one_story(backend: str) -> None:
    @examples(backend)
    @given(call=plain_calls)
    def tell_one_story(call: Call) -> None:
        values = {}
        for call.reduction in REDUCTIONS:
            values[call.reduction] = call.run(backend)[0].double()
        counts = torch.tensor(call.sizes).double()
        total = values["none"].sum()
        torch.testing.assert_close(values["sum"], total, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            values["mean"] * max(sum(call.sizes), 1), total, rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close((values["class"] * counts).sum(), total, rtol=1e-5, atol=1e-7)

    tell_one_story()
