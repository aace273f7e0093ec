"""Counts what a program asks of a GPU while it runs on torch's device `meta`.

On `meta` the program takes the branches of a GPU and computes nothing. The meter stands below
autograd and vmap and sees each operation:

launches    of kernels, `operations.py` says how many
calls       of the CPU that launch them: one for each kernel, and one for all of a graph
bytes       that operations read and write
flops       of convolutions and products of matrices
copies      from the CPU to the device, and their bytes
waits       of the host for the device: reading a number (item, tolist, bool, ...), operations whose
            shape depends on numbers (nonzero, a mask as an index, ...), copies to or from memory of
            the CPU that is not pinned; not those for an event, which may be long past

Where the program reads what was not computed it is told 1. What came from the CPU reads as that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from bench.budget.count import Count, line_here
from bench.budget.operations import bytes_of, flops_of, launches_of, memory_of, tensors_in
from bench.budget.prediction import nanoseconds

aten: Any = torch.ops.aten

REST = "rest"
"""The part of what is in no range of `torch.profiler.record_function`."""

_WAITING = {
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.repeat_interleave, aten.bincount, aten.equal,
}  # fmt: skip
_IN_PLACE = {aten._fused_sgd_, aten._fused_adamw_}  # of which `meta` has none
_REMEMBERED = 1 << 16  # numbers of a tensor that came from the CPU


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts by part: the outermost ranges that the program names, and `REST`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[str, Count] = {}
        self._ranges: list[str] = []
        self._known = WeakTensorKeyDictionary()  # of tensors there, what they were on the CPU
        self._pinned: dict[int, Tensor] = {}  # by address, which stays theirs as they are kept

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: that would load a compiler, which takes seconds."""
        return False

    def count(self, call: Callable[[], object]) -> dict[str, Count]:
        """What a call asks for, by part."""
        self.parts = {}
        call()
        return self.parts

    def total(self, call: Callable[[], object]) -> Count:
        """What a call asks for in all."""
        return sum(self.count(call).values(), Count())

    def apart(self, call: Callable[[], object]) -> Count:
        """What a call asks for, which does not count as asked for now."""
        parts, ranges = self.parts, self._ranges
        self.parts, self._ranges = {}, []
        try:
            call()
            return sum(self.parts.values(), Count())
        finally:
            self.parts, self._ranges = parts, ranges

    def again(self, count: Count) -> None:
        """Note what a graph of such a count does."""
        self.here += replace(count, calls=1)

    @property
    def here(self) -> Count:
        """The count of the part under way."""
        return self.parts.setdefault(self._part, Count())

    @here.setter
    def here(self, count: Count) -> None:
        self.parts[self._part] = count

    @property
    def _part(self) -> str:
        return self._ranges[0] if self._ranges else REST

    def launch(self, name: str, launches: int, moved: int, flops: int = 0) -> None:
        """Note an operation on the device."""
        here = self.here
        here.launches += launches
        here.calls += launches
        here.bytes += moved
        here.flops += flops
        here.nanoseconds += nanoseconds(launches, moved, flops)
        if launches:
            here.operations[name] += launches

    def wait(self) -> None:
        """Note that the host waits for the device."""
        self.here.waits += 1
        self.here.lines[f"waits in {line_here()}"] += 1

    def copy(self, source: Tensor, asynchronous: bool = False) -> None:
        """Note a copy to the device; only one from pinned memory need not wait."""
        here = self.here
        here.copies += 1
        here.copied_bytes += memory_of(source)
        here.lines[f"copies in {line_here()}"] += 1
        if not (asynchronous and self._is_pinned(source)):
            here.waits += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation."""
        options = kwargs or {}
        packet = func.overloadpacket
        if func.namespace == "profiler":
            self._enter_or_leave(packet.__name__, args)
        tensors = tensors_in(args, options)
        if packet in (aten._to_copy, aten.copy_):
            made = self._copied(func, args, options)
        elif not any(tensor.is_meta for tensor in tensors):
            made = self._on_cpu(func, args, options)
        elif packet is aten._local_scalar_dense:
            self.wait()
            return self._numbers_of(args[0]).item()
        else:
            if self._reads(packet, args, options):
                self.wait()
            for tensor in tensors:  # such as places on the CPU, of a tensor that is not
                if not tensor.is_meta and tensor.dim():
                    self.copy(tensor)
            made = self._made(func, args, options)
        results = tensors if made is None else tensors_in(made)  # in place on lists
        if any(tensor.is_meta for tensor in results) and not self._crossed(packet, args):
            launches = launches_of(func, args, made)
            moved = bytes_of(func, args, options, made)
            self.launch(func._schema.name, launches, moved, flops_of(func, args, made))
        return made

    @staticmethod
    def _made(func: Any, args: Any, options: dict[str, Any]) -> Any:
        """What an operation makes, also those that `meta` does not have."""
        if func.overloadpacket is aten.equal:
            return True
        return None if func.overloadpacket in _IN_PLACE else func(*args, **options)

    @staticmethod
    def _crossed(packet: Any, args: Any) -> bool:
        """Whether an operation was a copy between the CPU and the device, which is no kernel."""
        if packet is aten._to_copy:
            return not args[0].is_meta
        return packet is aten.copy_ and args[0].is_meta != args[1].is_meta

    def _copied(self, func: Any, args: Any, options: dict[str, Any]) -> Any:
        """A copy, which may go from the CPU to the device or back."""
        if func.overloadpacket is aten._to_copy:
            (source,), to = args, options.get("device") or args[0].device
            asynchronous = options.get("non_blocking", False)
        else:
            (target, source), to = args[:2], args[0].device
            asynchronous = len(args) > 2 and args[2]
        if source.is_meta and to.type == "cpu":
            numbers = self._numbers_of(source)
            if func.overloadpacket is aten._to_copy:
                self.wait()
                return func(numbers, **options)
            if not (asynchronous and self._is_pinned(target)):
                self.wait()
            return func(target, numbers)
        made = func(*args, **options)
        if to.type == "meta" and not source.is_meta:
            self.copy(source, asynchronous)
            if not source.is_floating_point():
                self.remember(made, source)
        return made

    def _on_cpu(self, func: Any, args: Any, options: dict[str, Any]) -> Any:
        """An operation on the CPU, or one that makes a tensor of none. Pinned memory is noted."""
        packet = func.overloadpacket
        if packet is aten.is_pinned:
            return self._is_pinned(args[0])
        if packet is aten._pin_memory:
            return self._pin(args[0].clone())
        if options.get("pin_memory"):
            return self._pin(func(*args, **{**options, "pin_memory": False}))
        return func(*args, **options)

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    @staticmethod
    def _reads(packet: Any, args: Any, options: dict[str, Any]) -> bool:
        """Whether a GPU's version of an operation has to look at numbers before it goes on."""
        if packet in _WAITING:
            return packet is not aten.repeat_interleave or options.get("output_size") is None
        if packet is aten.segment_reduce:
            return not options.get("unsafe")
        masks = packet in (aten.index, aten.index_put_, aten.index_put) and any(
            place.dtype in (torch.bool, torch.uint8) for place in tensors_in(args[1])
        )
        # One number at all places of a mask is filled in, without a look at where they are.
        return masks and (packet is aten.index or args[2].numel() > 1)

    def remember(self, tensor: Tensor, numbers: Tensor) -> None:
        """Note what a tensor on the device was on the CPU."""
        if numbers.numel() <= _REMEMBERED:
            self._known[tensor] = tensor._version, numbers.detach().clone()

    def _numbers_of(self, tensor: Tensor) -> Tensor:
        """What a tensor on the device reads as."""
        if tensor in self._known:
            version, numbers = self._known[tensor]
            if version == tensor._version:
                return torch.as_tensor(numbers, dtype=tensor.dtype)
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    def _enter_or_leave(self, name: str, args: Any) -> None:
        if name == "_record_function_enter_new":
            self._ranges.append(args[0])
        elif name == "_record_function_exit" and self._ranges:
            self._ranges.pop()
