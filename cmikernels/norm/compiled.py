"""`norm_act_pool` as compilers see it: registered, with fakes and derivatives.

    cmikernels::norm_act_pool(x, residual, weight, bias, ...) -> out
    cmikernels::norm_act_pool_backward(grad, x, ...) -> (dx, dresidual, dweight, dbias)
    cmikernels::norm_act_pool_double_backward(cotangents, grad, x, ...) -> (dgrad, dx, dweight)

Eager calls do not come through here: a registered operation does not go through `torch.func.grad`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmikernels.norm import operations
from cmikernels.norm.layout import like_out
from cmikernels.norm.operations import (
    OPTIONS,
    keep_inputs,
    mapped,
    new_gradients,
    new_second_gradients,
    of_backward_inputs,
    of_inputs,
)

_INPUTS = (
    "Tensor x, Tensor? residual, Tensor weight, Tensor bias, SymInt groups, float slope, "
    "SymInt pool, float eps, str backend"
)

norm_act_pool = torch.library.custom_op(
    "cmikernels::norm_act_pool",
    operations.forward,
    mutates_args=(),
    schema=f"({_INPUTS}) -> Tensor",
)
norm_act_pool_backward = torch.library.custom_op(
    "cmikernels::norm_act_pool_backward",
    operations.backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)

norm_act_pool_double_backward = torch.library.custom_op(
    "cmikernels::norm_act_pool_double_backward",
    operations.double_backward,
    mutates_args=(),
    schema=(
        "(Tensor? of_dx, Tensor? of_dresidual, Tensor? of_dweight, Tensor? of_dbias, Tensor grad, "
        f"{_INPUTS}) -> (Tensor, Tensor, Tensor)"
    ),
)


@norm_act_pool.register_fake
def _(*inputs: Any) -> Tensor:
    return like_out(inputs[0], inputs[6])


@norm_act_pool_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return new_gradients(*inputs)


@norm_act_pool_double_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return new_second_gradients(*arguments[4:])


def _differentiate(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * (4 + OPTIONS)
    made = norm_act_pool_backward(grad, *ctx.saved_tensors, *ctx.options)
    return of_inputs(ctx, *made)


def _differentiate_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    made = norm_act_pool_double_backward(*cotangents, *ctx.saved_tensors, *ctx.options)
    return of_backward_inputs(*made)


norm_act_pool.register_autograd(_differentiate, setup_context=keep_inputs)
norm_act_pool_backward.register_autograd(_differentiate_backward, setup_context=keep_inputs)


@norm_act_pool.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    return mapped(norm_act_pool, info.batch_size, in_dims, inputs)


@norm_act_pool_backward.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    return mapped(norm_act_pool_backward, info.batch_size, in_dims, inputs)
