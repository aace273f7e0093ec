"""What is made on the CPU goes to a device in one copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmidd import parcel
from cmidd.parcel import sent

META = torch.device("meta")


class Pair(NamedTuple):
    first: Tensor
    name: str


@dataclass(frozen=True, eq=False)
class Drawn:
    rows: list[Tensor]
    weights: dict[str, Tensor]
    pairs: tuple[Pair, ...]
    number: int
    none: Tensor | None = None


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts copies from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name, onto = func.name(), getattr(made, "device", None)
        if name.startswith(("aten::_to_copy", "aten::copy_")) and onto == META:
            assert (kwargs or {}).get("non_blocking"), "a copy that is waited for"
            self.count += 1
        return made


def drawn() -> Drawn:
    return Drawn(
        [torch.arange(3), torch.arange(0), torch.tensor(7)],
        {"a": torch.randn(3, 5).T, "b": torch.ones(2, 3, dtype=torch.float64)},
        (Pair(torch.tensor([True, False, True]), "one"), Pair(torch.zeros(1).half(), "two")),
        3,
    )


def tensors(made: Drawn) -> list[Tensor]:
    return [*made.rows, *made.weights.values(), *(pair.first for pair in made.pairs)]


def test_everything_goes_in_one_copy_that_nobody_waits_for() -> None:
    with Copies() as copies:  # type: ignore[no-untyped-call]
        there = sent(drawn(), META)
    assert copies.count == 1
    assert all(tensor.device == META for tensor in tensors(there))
    assert (there.number, there.none, [pair.name for pair in there.pairs]) == (
        3, None, ["one", "two"],
    )  # fmt: skip
    for ours, theirs in zip(tensors(drawn()), tensors(there), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def test_values_shapes_and_kinds_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:  # a device with memory of its own that can be read here
        type = "cuda"

    there: list[Tensor] = []

    def arrive(self: Tensor, device: Any, *, non_blocking: bool) -> Tensor:
        assert non_blocking
        there.append(self.clone())
        return there[-1]

    monkeypatch.setattr(parcel, "_pins", lambda _: False)
    monkeypatch.setattr(Tensor, "to", arrive)
    made = drawn()
    got = sent(made, Elsewhere())  # type: ignore[arg-type]
    monkeypatch.undo()
    assert len(there) == 1
    base = there[0].untyped_storage().data_ptr()
    for ours, theirs in zip(tensors(made), tensors(got), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
        assert theirs.untyped_storage().data_ptr() == base
        assert theirs.is_contiguous()
        assert theirs.storage_offset() * theirs.itemsize % parcel._ALIGNED == 0


def test_on_the_cpu_it_is_what_it_was() -> None:
    made = drawn()
    assert sent(made, torch.device("cpu")) is made


def test_what_is_there_already_stays() -> None:
    there, here = torch.empty(3, device=META), torch.ones(2)
    got = sent((there, here, here), META)
    assert got[0] is there
    assert [tensor.shape for tensor in got[1:]] == [(2,), (2,)]
