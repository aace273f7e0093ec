"""What is made on the CPU goes to a device in one copy, for which the CPU does not wait; or back.

A copy of a tensor that lies anywhere in the CPU's memory stops the CPU until a GPU has done all
that it was told before. One from pinned memory does not, and one of many tensors takes about as
long as one of a single tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_PINNED_FOR = ("cuda", "meta")  # devices, of which the second copies nothing
_ALIGNED = 128  # bytes that a tensor's place is a multiple of, as kernels like it


def sent(made: T, device: torch.device) -> T:
    """The same with its tensors of the CPU on the device.

    Args:
        made: a tensor, or tuples, lists, dictionaries and dataclasses of such and of anything else.
        device: where they go; to the CPU nothing does.
    """
    if device.type == "cpu":
        return made
    found: dict[int, Tensor] = {}
    mapped(made, lambda tensor: found.setdefault(id(tensor), tensor))
    places, end = {}, 0
    for key, tensor in found.items():
        if tensor.device.type == "cpu":
            places[key] = end
            end = -(-(end + tensor.nbytes) // _ALIGNED) * _ALIGNED
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=_pins(device))
    for key, start in places.items():
        part_of(packed, start, found[key]).copy_(found[key])
    in_turn = device.type in _PINNED_FOR  # else the memory may be gone before it is read
    there = packed.to(device, non_blocking=in_turn) if end else packed.new_empty(0, device=device)

    def unpacked(tensor: Tensor) -> Tensor:
        start = places.get(id(tensor))
        return tensor if start is None else part_of(there, start, tensor)

    return mapped(made, unpacked)


def part_of(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """The tensor like another one whose numbers are in these bytes from `start` on."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


def fetched(number: Tensor) -> Callable[[], float]:
    """What gives a number of a device later; of a GPU it waits for what led to the number alone."""
    if number.device.type == "cpu":
        return partial(float, number.item())
    here = torch.empty((), dtype=number.dtype, pin_memory=_pins(number.device))
    here.copy_(number, non_blocking=_pins(number.device))
    there = torch.cuda.current_stream(number.device).record_event() if number.is_cuda else None

    def read() -> float:
        if there is not None:
            there.synchronize()
        return float(here.item())

    return read


def _pins(device: torch.device) -> bool:
    """Whether copies to a device are of pinned memory."""
    return device.type == "cuda"


def mapped(made: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same with a function of each tensor in its place."""
    found: object = made
    if isinstance(made, Tensor):
        found = function(made)
    elif isinstance(made, dict):
        found = {name: mapped(each, function) for name, each in made.items()}
    elif isinstance(made, list | tuple):
        each_one = [mapped(each, function) for each in made]
        found = type(made)(*each_one) if hasattr(made, "_fields") else type(made)(each_one)
    elif is_dataclass(made) and not isinstance(made, type):
        found = replace(
            made,
            **{f.name: mapped(getattr(made, f.name), function) for f in fields(made) if f.init},
        )
    return found  # type: ignore[return-value]
