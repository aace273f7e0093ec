"""The launches of a CUDA call, on emulated GPUs, and the value that the last block adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, cmi_value_and_grad, fused_cmi
from cmikernels.backends import cuda, operations
from cmikernels.problem import Problem
from tests.support.compare import assert_value, value_and_gradient
from tests.support.emulated_gpu import WAYS, Case, emulated, every_way
from tests.support.oracle import Oracle
from tests.support.tables import make_features, make_labels

pytestmark = pytest.mark.usefixtures("nan_filled_empty")


def launches_of(call: Callable[[], object]) -> int:
    """Kernels that the call starts."""
    before = emulated.launch_count()
    call()
    return int(emulated.launch_count() - before)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_way
def test_a_call_is_one_launch(emulate: Callable[..., None], case: Case, reduction: str) -> None:
    emulate(case.chip)
    z = make_features((case.classes, case.rows), case.channels, dtype=case.dtype)
    options: dict[str, Any] = {"reduction": reduction, "backend": "cuda"}
    assert launches_of(lambda: fused_cmi(z, **options)) == 1
    assert launches_of(lambda: cmi_value_and_grad(z, **options)) == 1


@every_way
def test_forward_and_backward_are_two_launches(emulate: Callable[..., None], case: Case) -> None:
    emulate(case.chip)
    z = make_features((case.classes, case.rows), case.channels, dtype=case.dtype)
    assert launches_of(lambda: value_and_gradient("cuda", z)) == 2


SIZES = {
    "with empty classes": lambda case: (0, *case.unequal, 0, 0),
    "one class": lambda case: (case.rows,),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_way
def test_the_order_of_blocks_changes_no_bit_of_the_value(
    emulate: Callable[..., None],
    case: Case,
    reduction: str,
    sizes: Callable[[Case], tuple[int, ...]],
) -> None:
    counts = sizes(case)
    labels = make_labels(counts, 7)
    z = make_features(len(labels), case.channels, dtype=case.dtype)
    classes = ClassIndex(labels, len(counts))

    def value(seed: int) -> Tensor:
        emulate(case.chip, seed)
        return fused_cmi(z, classes, reduction=reduction, backend="cuda")

    expected = value(0)
    assert_value(
        expected, Oracle(z, labels, num_classes=len(counts), reduction=reduction).value, z.dtype
    )
    assert all(torch.equal(value(seed), expected) for seed in range(1, 6))


def test_a_call_leaves_its_counter_as_it_was(
    emulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counters: dict[tuple[int, int], Tensor] = {}
    monkeypatch.setattr(cuda, "_counters", counters)
    for case in WAYS:
        emulate(case.chip)
        z = make_features((case.classes, case.rows), case.channels, dtype=case.dtype)
        fused_cmi(z, backend="cuda")
        assert [counter.item() for counter in counters.values()] == [0]


def test_a_stream_has_one_counter_and_a_captured_call_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capturing = False
    monkeypatch.setattr(cuda, "_counters", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    z = torch.empty(2, 3)

    def counter(stream: int, device: int = 0) -> int:
        counters.append(cuda._counter(z, device, stream))  # alive, so that no address comes again
        assert counters[-1].tolist() == [0]
        return counters[-1].data_ptr()

    counters: list[Tensor] = []
    mine = counter(stream=1)
    assert counter(stream=1) == mine
    assert len({mine, counter(stream=2), counter(stream=1, device=1)}) == 3
    capturing = True
    assert len({mine, counter(stream=1), counter(stream=1)}) == 3
    capturing = False
    assert counter(stream=1) == mine


def test_a_call_without_a_value_of_all_rows_needs_no_counter(
    emulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a graph it would be one more launch."""
    emulate()
    monkeypatch.setattr(cuda, "_counter", lambda *_: pytest.fail("a counter was asked for"))
    z = make_features((3, 4), 8)
    fused_cmi(z, reduction="class", backend="cuda")
    fused_cmi(z, reduction="none", backend="cuda")
    problem = Problem(None, 12, 3, None, 1.0, 1.0, "mean")
    operations.backward(cuda, z, problem, torch.tensor(2.0))
