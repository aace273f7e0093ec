"""The compiled core, or None with the reason where this installation lacks it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IMPORT_ERROR", "has_memory", "native"]

IMPORT_ERROR = ""
try:
    import cmikernels._native as native
except ImportError as error:  # a source tree without its build
    native = None  # type: ignore[assignment]
    IMPORT_ERROR = str(error)

_PLAIN = (Tensor, torch.nn.Parameter)


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's memory may be read now: not a fake one, a wrapper, or one being traced."""
    return (
        type(tensor) in _PLAIN
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )
