"""A call of the Triton kernels: one launch, and one that adds up the rows' shares of gradients."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from cmikernels.backends.operations import on_device_of
from cmikernels.backends.triton.launch import launch
from cmikernels.backends.triton.plan import ceil_div
from cmikernels.norm import orders
from cmikernels.norm.layout import Inputs, channels_last, read_in_layout
from cmikernels.norm.plan import make_plan

_KERNELS = (orders.forward, orders.backward, orders.double_backward)
_ARITHMETIC = {torch.float32: tl.float32, torch.float64: tl.float64}
_SUM_TILE = (128, 8)  # rows and channels that are added up at once
_SHARES = {"weight_grad": "weight_shares", "bias_grad": "bias_shares"}


def run(
    order: int,
    inputs: Inputs,
    incoming: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
) -> None:
    """Fill the outputs of an order, on the device's current stream."""
    on_device_of(inputs[0], _run, order, inputs, incoming, outputs)


def _run(
    x: Tensor,
    order: int,
    inputs: Inputs,
    incoming: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
) -> None:
    _, _, weight, _, groups, slope, pool, eps = inputs
    rows, channels, height, width = x.shape
    last = channels_last(x)
    arguments: dict[str, Any] = read_in_layout(inputs, incoming, last)
    sums = {name: outputs[name] for name in _SHARES if name in outputs}
    for name in sums:  # a row for each row, of the set's sums in the end
        arguments[_SHARES[name]] = weight.new_empty(rows, channels)
    arguments |= {name: tensor for name, tensor in outputs.items() if name not in sums}
    if order == 1:
        arguments.setdefault("residual_grad", None)
    set_rows = rows // len(weight)
    plan = make_plan(order, groups, channels, height, width, pool, x.element_size(), last)
    windows = ceil_div(height, pool) * ceil_div(width, pool)
    launch(
        _KERNELS[order],
        (rows * ceil_div(groups, plan.block_groups),),
        plan.num_warps,
        **arguments,
        set_rows=set_rows,
        slope=slope,
        eps=eps,
        ARITHMETIC=_ARITHMETIC[weight.dtype],
        GROUPS=groups,
        CHANNELS=channels,
        HEIGHT=height,
        WIDTH=width,
        POOL=pool,
        LAST=last,
        BLOCK_G=plan.block_groups,
        BLOCK_J=plan.block_channels,
        BLOCK_P=plan.block_windows,
        END=plan.block_windows if plan.held else windows,
        HELD=plan.held,
        EVEN=plan.even,
    )
    if sums:
        launch(
            orders.add_rows,
            (len(weight) * ceil_div(channels, _SUM_TILE[1]),),
            4,
            weight_shares=arguments["weight_shares"],
            bias_shares=arguments.get("bias_shares"),
            weight_grad=sums["weight_grad"],
            bias_grad=sums.get("bias_grad"),
            set_rows=set_rows,
            CHANNELS=channels,
            BLOCK_R=_SUM_TILE[0],
            BLOCK_C=_SUM_TILE[1],
        )
