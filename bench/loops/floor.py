"""The convolutions of a step and nothing else: what a float32 step cannot be faster than.

They are those that a whole step of a loop dispatches, forward and for every derivative, in their
order; each kind is run again on tensors that are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every convolution, and keeps the arguments of the first of its kind."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[object, ...]] = []
        self.kinds: dict[tuple[object, ...], tuple[Any, Sequence[Any]]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in _CONVOLUTIONS:
            kind = (function, *map(_kind_of, args))
            self.calls.append(kind)
            if kind not in self.kinds:
                kept = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
                self.kinds[kind] = function, kept
        return result


def _kind_of(argument: object) -> object:
    if isinstance(argument, Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype
    return tuple(argument) if isinstance(argument, list) else argument


def convolutions_of(step: Callable[[], object]) -> Callable[[object], None]:
    """Make the step once; give a function that does its convolutions again."""
    with _Recorder() as recorder:
        step()

    @torch.no_grad()
    def run(_: object) -> None:
        for kind in recorder.calls:
            function, arguments = recorder.kinds[kind]
            function(*arguments)

    return run
