from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cmidd import captured
from cmidd.captured import CALLS_BEFORE, Captured
from tests.support.replaying import Replayed
from tests.support.tiny import CPU


class Numbers(NamedTuple):
    of: Tensor
    factor: float
    more: list[Tensor]


class Sum:
    """Adds products of numbers up, where it is."""

    def __init__(self) -> None:
        self.total, self.calls = torch.zeros(()), 0

    def __call__(self, numbers: Numbers) -> None:
        self.calls += 1
        self.total += numbers.factor * numbers.of.sum() + sum(each.sum() for each in numbers.more)


def numbers(k: int, count: int = 3, factor: float = 2.0) -> Numbers:
    return Numbers(torch.full((count,), float(k)), factor, [torch.tensor([10.0 * k])])


def test_a_function_is_called_a_few_times_then_captured_and_then_its_work_is_done_again(
    graphs: type[Replayed],
) -> None:
    function = Sum()
    again = Captured(function, CPU)
    expected = 0.0
    for k in range(CALLS_BEFORE + 5):
        again(numbers(k))
        expected += 2 * 3 * k + 10 * k
        assert function.total == expected
    assert function.calls == CALLS_BEFORE + 1  # one is the capture
    assert (graphs.captures, graphs.replays) == (1, 5)


def test_each_kind_of_argument_has_a_graph_of_its_own(graphs: type[Replayed]) -> None:
    function = Sum()
    again = Captured(function, CPU)
    kinds: list[dict[str, Any]] = [{}, {"count": 4}, {"factor": 3.0}]
    expected = 0.0
    for k in range(CALLS_BEFORE + 3):
        for kind in kinds:
            again(numbers(k, **kind))
            expected += kind.get("factor", 2.0) * kind.get("count", 3) * k + 10 * k
            assert function.total == expected
    assert (graphs.captures, graphs.replays) == (3, 9)


def test_kinds_that_do_not_come_again_are_plain_calls_and_graphs_are_few(
    graphs: type[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "_MOST_GRAPHS", 2)
    function = Sum()
    again = Captured(function, CPU)
    for count in range(1, 6):
        again(numbers(1, count=count))
    assert graphs.captures == 0
    for _ in range(CALLS_BEFORE + 1):
        for count in range(1, 6):
            again(numbers(1, count=count))
    assert graphs.captures == 2
    assert function.total == (CALLS_BEFORE + 2) * (2 * 15 + 5 * 10)


def test_arguments_are_not_kept_and_not_changed(graphs: type[Replayed]) -> None:
    again = Captured(Sum(), CPU)
    given = [numbers(k) for k in range(CALLS_BEFORE + 3)]
    for each in given:
        again(each)
    assert graphs.replays == 3
    for k, each in enumerate(given):
        assert each.of.tolist() == [k] * 3


READING: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "a mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "a number of Python's": lambda x: x + torch.tensor(2.0),
}


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("read", READING.values(), ids=READING)
def test_what_cannot_be_captured_is_an_error_that_says_what_to_do(
    read: Callable[[Tensor], object],
) -> None:
    again = Captured(lambda given: (read(given.of), None)[1], CPU)  # type: ignore[var-annotated]
    for k in range(CALLS_BEFORE):
        again(numbers(k))
    with pytest.raises(RuntimeError, match=r"not permitted.*; begin again with CMIDD_CUDA_GR"):
        again(numbers(CALLS_BEFORE))


def test_memory_that_is_not_there_is_torchs_own_error(graphs: type[Replayed]) -> None:
    def work(given: Numbers) -> None:
        if graphs.captures:
            raise torch.OutOfMemoryError("CUDA out of memory")

    again = Captured(work, CPU)
    for k in range(CALLS_BEFORE):
        again(numbers(k))
    with pytest.raises(torch.OutOfMemoryError):
        again(numbers(CALLS_BEFORE))


@pytest.mark.usefixtures("graphs")
def test_numbers_of_other_types_are_other_kinds_and_what_is_unknown_is_refused() -> None:
    given: list[Tensor] = []
    values: list[object] = [1, 1.0, True, 0.0, -0.0, "1", None, (), []]
    kinds = [captured._kind(value, given) for value in values]
    assert len(set(kinds)) == len(kinds)
    unknown: list[object] = [{"a": 1}, slice(3), object()]
    for value in unknown:
        with pytest.raises(TypeError, match="argument: expected tensors, numbers and names"):
            captured._kind(value, given)


def test_where_kinds_do_not_come_again_all_are_plain_calls(
    graphs: type[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "_MOST_KINDS", 3)
    function, before = Sum(), list[int]()
    again = Captured(function, CPU)

    def noted(_: Replayed, work: Callable[[], None]) -> None:
        before.append(1)
        work()

    monkeypatch.setattr(Replayed, "before", noted)
    for _ in range(CALLS_BEFORE + 2):
        for count in range(1, 6):
            again(numbers(1, count=count))
    assert graphs.captures == 0
    assert len(before) == 4
    assert function.total == (CALLS_BEFORE + 2) * (2 * 15 + 5 * 10)


@pytest.mark.parametrize("step", [4, 1], ids=["as they were sent", "anywhere"])
def test_what_lies_together_is_found_wherever_it_lies(graphs: type[Replayed], step: int) -> None:
    function = Sum()
    again = Captured(function, CPU)
    expected = 0.0
    for k in range(CALLS_BEFORE + 4):
        memory, first = torch.full((64,), -1000.0), step * (k + 1)
        memory[first : first + 3], memory[first + 8] = k, 10 * k
        again(Numbers(memory[first : first + 3], 2.0, [memory[first + 8 : first + 9]]))
        expected += 2 * 3 * k + 10 * k
        assert function.total == expected
    assert graphs.captures == 1


def test_what_lies_together_is_one_copy_and_what_does_not_several() -> None:
    memory = torch.arange(64.0)
    near, far = [memory[8:11], memory[16:17]], [memory[8:11], memory[60:61]]
    assert captured._layout(near) == (4 * 9, (0, 4 * 8))
    (piece,) = captured._pieces(near, captured._layout(near))
    assert torch.equal(piece.view(torch.float32), memory[8:17])
    found = captured._tensors([piece.clone()], near, captured._layout(near))
    assert [each.tolist() for each in found] == [each.tolist() for each in near]
    apart = [memory[8:11], torch.zeros(1)]
    for others in (far, apart, [memory[8:14:2], memory[16:17]], [memory[9:12], memory[16:17]]):
        assert captured._layout(others) is None
        assert captured._pieces(others, None) is others
