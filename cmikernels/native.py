"""The compiled core, or None with the reason where this installation lacks it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["DTYPE_CODES", "IMPORT_ERROR", "REDUCTION_CODES", "address", "has_memory", "native"]

IMPORT_ERROR = ""
try:
    import cmikernels._native as native
except ImportError as error:  # a source tree without its build
    native = None  # type: ignore[assignment]
    IMPORT_ERROR = str(error)

# As csrc/include/cmikernels.h has them.
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTION_CODES = {"mean": 0, "sum": 1, "class": 2, "none": 3}

_PLAIN = (Tensor, torch.nn.Parameter)


def address(tensor: Tensor | None) -> int:
    """Where its memory begins; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's memory may be read now: not a fake one, a wrapper, or one being traced."""
    return (
        type(tensor) in _PLAIN
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
    )
