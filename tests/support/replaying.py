"""What stands in for CUDA graphs on a CPU: operations are noted, and done again where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmidd.captured import GRAPHS

aten: Any = torch.ops.aten
T = TypeVar("T")

_REFUSED = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.lift_fresh,
    aten.equal,
}  # fmt: skip
"""What reads numbers, or copies those that Python has."""


class _Noted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations of some work, with their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, dict[str, Any], list[Any]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        masks = func.overloadpacket in (aten.index, aten.index_put_) and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if func.overloadpacket in _REFUSED or masks:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tree_leaves(made)))
        return made


@contextmanager
def _without_reading() -> Iterator[None]:
    """Refuses what reads numbers past the operations."""

    def refused(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with mock.patch.multiple(Tensor, tolist=refused, numpy=refused):
        yield


class Replayed:
    """Does operations again on the same memory.

    As in a CUDA graph, Python's part is not done again, what an operation made stays where it was
    made, and no number may be read. Other than there all memory is kept, and copies from the CPU
    are not seen.
    """

    captures = replays = 0

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def before(self, work: Callable[[], None]) -> None:
        """Do work that will be captured."""
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note it. It is done too, in the place of the first replay."""
        type(self).captures += 1
        noted = _Noted()
        with noted, _without_reading():
            work()
        is_done = [True]

        def replay() -> None:
            type(self).replays += 1
            if is_done:
                is_done.clear()
                return
            with torch._C._AutoDispatchBelowAutograd():  # where a mode stands too
                for func, args, kwargs, before in noted.operations:
                    for old, new in zip(before, tree_leaves(func(*args, **kwargs)), strict=True):
                        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)

        return replay


def replayed(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """Has steps on a CPU captured so; what counts them."""
    monkeypatch.setattr(Replayed, "captures", 0)
    monkeypatch.setattr(Replayed, "replays", 0)
    monkeypatch.setitem(GRAPHS, "cpu", Replayed)
    return Replayed


class DoneAgain:
    """Does work itself again: what a graph has to come to."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def before(self, work: Callable[[], None]) -> None:
        """Do work that will be captured."""
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """The work."""
        return work


def both(monkeypatch: pytest.MonkeyPatch, run: Callable[[], T]) -> tuple[T, T, type[Replayed]]:
    """A run whose steps are done again by Python, and one by graphs."""
    monkeypatch.setitem(GRAPHS, "cpu", DoneAgain)
    expected = run()
    graphs = replayed(monkeypatch)
    return expected, run(), graphs
