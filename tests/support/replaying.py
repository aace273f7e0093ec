"""What stands in for CUDA graphs on a CPU: operations are noted, and done again where they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cmidd.captured import GRAPHS


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
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            raise RuntimeError("operation not permitted when stream is capturing")
        made = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tree_leaves(made)))
        return made


class Replayed:
    """Does operations again on the same memory.

    As in a CUDA graph, Python's part is not done again, what an operation made stays where it was
    made, and no number may be read.
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
        with noted:
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
