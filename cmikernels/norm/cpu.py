"""The CPU kernel (`csrc/cpu/norm.cpp`), called by its orders."""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.native import DTYPE_CODES, native
from cmikernels.norm.layout import Inputs, channels_last, read_in_layout

_POINTERS = ("x", "residual", "weight", "bias", "grad", "x_cotangent", "residual_cotangent",
             "weight_cotangent", "bias_cotangent", "out", "x_grad", "residual_grad",
             "weight_grad", "bias_grad", "grad_grad")  # fmt: skip
_NO_POINTERS = dict.fromkeys(_POINTERS, 0)


def run(
    order: int,
    inputs: Inputs,
    incoming: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
) -> None:
    """One call of the kernel."""
    x, _, weight, _, groups, slope, pool, eps = inputs
    rows, channels, height, width = x.shape
    last = order == 0 and channels_last(x)
    call = {
        **_NO_POINTERS,
        "rows": rows, "channels": channels, "height": height, "width": width,
        "groups": groups, "sets": len(weight), "slope": slope, "eps": eps, "pool": pool,
        "channels_last": last, "dtype": DTYPE_CODES[x.dtype], "threads": torch.get_num_threads(),
    }  # fmt: skip
    tensors = {**read_in_layout(inputs, incoming, last), **outputs}
    for name, tensor in tensors.items():
        if tensor is not None:
            call[name] = tensor.data_ptr()
    native.cpu_norm(call, order)
