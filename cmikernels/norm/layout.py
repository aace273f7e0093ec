"""Layouts of maps, and memory for what the kernels make."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Any, ...]
"""x, residual or None, weight, bias, groups, slope, pool, eps."""


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel follow one another, and pixels do not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _format(last: bool) -> torch.memory_format:
    return torch.channels_last if last else torch.contiguous_format


def in_layout(tensor: Tensor, last: bool) -> Tensor:
    """A tensor as a kernel reads it: maps in a layout, all else contiguous, no negated view."""
    layout = _format(last and tensor.dim() == 4)
    if tensor.is_contiguous(memory_format=layout) and not tensor.is_neg():
        return tensor
    return tensor.contiguous(memory_format=layout).resolve_neg()


def read_in_layout(
    inputs: Inputs, incoming: dict[str, Tensor | None], last: bool
) -> dict[str, Tensor | None]:
    """What a kernel reads, by name. Some may be copies, which have to live as long as it reads."""
    tensors = {**dict(zip(("x", "residual", "weight", "bias"), inputs, strict=False)), **incoming}
    return {
        name: None if tensor is None else in_layout(tensor, last)
        for name, tensor in tensors.items()
    }


def like(tensor: Tensor, last: bool = False) -> Tensor:
    """Memory for as many numbers, in a layout."""
    return torch.empty_like(tensor, memory_format=_format(last))


def like_out(x: Tensor, pool: int) -> Tensor:
    """Memory for the output, in the layout of x."""
    rows, channels, height, width = x.shape
    return torch.empty(
        (rows, channels, height // pool, width // pool),
        dtype=x.dtype,
        device=x.device,
        memory_format=_format(channels_last(x)),
    )


def like_gradients(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for all gradients; empty for that of no residual."""
    dresidual = x.new_empty(0) if residual is None else like(x, last)
    return like(x, last), dresidual, like(weight), like(bias)
