"""Work that a GPU is told once and then does again: a function's launches in one CUDA graph.

Each launch takes some microseconds of the CPU, more than a small kernel takes of the GPU. A graph
of many is one. It does just what was done when it was captured, at the same addresses: what changes
from call to call is the function's argument, which is copied to where the graph reads it. All else
that the function reads or writes has to stay where it is, and Python's part is not done again.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cmidd.parcel import mapped, part_of

T = TypeVar("T")

CALLS_BEFORE = 3
"""Of each kind of argument, before a graph is worth its capture, and torch is ready for it."""
_MOST_GRAPHS = 6
_MOST_KINDS = 64  # that come before it is plain that kinds do not come again
_ALIGNED = 16  # bytes that numbers of any type may begin at

_Layout = tuple[int, tuple[int, ...]]
"""Of tensors that lie near each other: bytes in all, and where each begins among them."""


class Graphs(Protocol):
    """Of one function; each can be done again, and none while another one is."""

    def before(self, work: Callable[[], None]) -> None:
        """Do work as it has to be done before it is captured."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note the launches of work, none of which is done yet; what does them."""


@functools.cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    """The one on which everything of a device is captured, and done before."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _CudaGraphs:
    """They share their memory: nothing that one leaves there is read by another."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, _stream_beside(device)
        with torch.cuda.device(device):
            self.pool = torch.cuda.graph_pool_handle()

    def before(self, work: Callable[[], None]) -> None:
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                work()
            here.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with (  # other threads may go on, with memory for images that they read ahead
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, self.pool, self.stream, "thread_local"),
        ):
            work()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay


GRAPHS: dict[str, Callable[[torch.device], Graphs]] = {"cuda": _CudaGraphs}
"""By type of device, where there are graphs."""


def has_graphs(device: torch.device) -> bool:
    """Whether work on a device is captured: not where CMIDD_CUDA_GRAPHS=0 is in the environment."""
    return device.type in GRAPHS and os.environ.get("CMIDD_CUDA_GRAPHS") != "0"


class Captured(Generic[T]):
    """A function of tensors, which may stand in tuples and lists with numbers and names.

    It is captured for each kind of argument: of the same shapes, with the same numbers and names.
    Kinds that do not come again stay plain calls.
    """

    def __init__(self, function: Callable[[T], None], device: torch.device) -> None:
        self.function, self.graphs = function, GRAPHS[device.type](device)
        self._calls: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, tuple[list[Tensor], Callable[[], None]]] = {}

    def __call__(self, argument: T) -> None:
        """`function(argument)`."""
        given: list[Tensor] = []
        kind = _kind(argument, given), _layout(given)
        if kind not in self._captured:
            if len(self._captured) == _MOST_GRAPHS or len(self._calls) > _MOST_KINDS:
                self.function(argument)
                return
            self._calls[kind] += 1
            if self._calls[kind] <= CALLS_BEFORE:
                self.graphs.before(lambda: self.function(argument))
                return
            self._capture(kind, argument, given)
        read, replay = self._captured[kind]
        for there, tensor in zip(read, _pieces(given, kind[1]), strict=True):
            there.copy_(tensor)
        replay()

    def _capture(
        self, kind: tuple[Hashable, _Layout | None], argument: T, given: list[Tensor]
    ) -> None:
        """Make a graph of such arguments, which reads copies of these."""
        read = [piece.clone() for piece in _pieces(given, kind[1])]
        copies = dict(zip(map(id, given), _tensors(read, given, kind[1]), strict=True))
        copy = mapped(argument, lambda each: copies[id(each)])
        try:
            replay = self.graphs.capture(lambda: self.function(copy))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # after which CUDA may not be relied on
            raise RuntimeError(
                f"a step could not be captured in a CUDA graph ({error}); begin again with "
                "CMIDD_CUDA_GRAPHS=0 in the environment, which captures none"
            ) from error
        self._captured[kind] = read, replay


def _kind(value: Any, tensors: list[Tensor]) -> Hashable:
    """What two arguments have in common that one graph serves; puts the tensors into a list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return type(value), tuple(_kind(each, tensors) for each in value)
    if value is None or type(value) in (bool, int, float, str):
        return type(value), str(value)
    raise TypeError(
        "argument: expected tensors, numbers and names, in tuples and lists, got "
        f"{type(value).__name__}"
    )


def _layout(tensors: list[Tensor]) -> _Layout | None:
    """How tensors lie that were sent together, and can be copied in one; None: not so."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors}
    if len(storages) != 1 or not all(tensor.is_contiguous() for tensor in tensors):
        return None
    starts = [_start(tensor) for tensor in tensors]
    ends = [start + tensor.nbytes for start, tensor in zip(starts, tensors, strict=True)]
    first, end = min(starts), max(ends)
    if end - first > 4 * sum(tensor.nbytes for tensor in tensors) or first % _ALIGNED:
        return None
    return end - first, tuple(start - first for start in starts)


def _start(tensor: Tensor) -> int:
    """The byte of its storage that it begins with."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _pieces(tensors: list[Tensor], layout: _Layout | None) -> list[Tensor]:
    """What is copied of tensors: each, or the bytes that all of them lie in."""
    if layout is None:
        return tensors
    size, starts = layout
    start = _start(tensors[0]) - starts[0]
    whole = torch.empty(0, dtype=torch.uint8, device=tensors[0].device)
    return [whole.set_(tensors[0].untyped_storage(), start, (size,), (1,))]


def _tensors(pieces: list[Tensor], like: list[Tensor], layout: _Layout | None) -> list[Tensor]:
    """The tensors of such pieces."""
    if layout is None:
        return pieces
    (whole,), (_, starts) = pieces, layout
    return [part_of(whole, start, each) for start, each in zip(starts, like, strict=True)]
