"""The CPU kernel of `norm_act_pool` (`csrc/cpu/norm.cpp`) and its derivatives, for autograd.

    forward(x, residual, weight, bias, ...) -> out
    backward(grad, x, ...) -> (dx, dresidual, dweight, dbias)
    double_backward(cotangents of these, grad, x, ...) -> (dgrad, dx, dweight)

Weight and bias are `(sets, channels)` in the arithmetic type; rows fall into so many sets of equal
size, one after another. So `torch.func.vmap` over them becomes one call with more rows and sets.
Backward keeps x and the residual; it makes statistics and activations anew, because a group is in
the nearest cache by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from cmikernels.native import DTYPE_CODES, native
from cmikernels.transforms import transforms_are_active

_FORWARD, _BACKWARD, _DOUBLE_BACKWARD = range(3)  # of cmik_norm_order

Inputs = tuple[Any, ...]
"""x, residual or None, weight, bias, groups, slope, pool, eps."""


_POINTERS = ("x", "residual", "weight", "bias", "grad", "x_cotangent", "residual_cotangent",
             "weight_cotangent", "bias_cotangent", "out", "x_grad", "residual_grad",
             "weight_grad", "bias_grad", "grad_grad")  # fmt: skip
_NO_POINTERS = dict.fromkeys(_POINTERS, 0)


def _run(
    order: int,
    inputs: Inputs,
    incoming: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
) -> None:
    """One call of the kernel."""
    x, residual, weight, bias, groups, slope, pool, eps = inputs
    rows, channels, height, width = x.shape
    last = order == _FORWARD and channels_last(x)
    call = {
        **_NO_POINTERS,
        "rows": rows, "channels": channels, "height": height, "width": width,
        "groups": groups, "sets": len(weight), "slope": slope, "eps": eps, "pool": pool,
        "channels_last": last, "dtype": DTYPE_CODES[x.dtype], "threads": torch.get_num_threads(),
    }  # fmt: skip
    copies = []  # which have to live until the call has returned
    read = {"x": x, "residual": residual, "weight": weight, "bias": bias, **incoming}
    for name, tensor in read.items():
        if tensor is not None:
            maps_last = last and tensor.dim() == 4
            layout = torch.channels_last if maps_last else torch.contiguous_format
            if not tensor.is_contiguous(memory_format=layout) or tensor.is_neg():
                tensor = tensor.contiguous(memory_format=layout).resolve_neg()
                copies.append(tensor)
            call[name] = tensor.data_ptr()
    for name, tensor in outputs.items():
        call[name] = tensor.data_ptr()
    native.cpu_norm(call, order)


def channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel follow one another, and pixels do not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def like(tensor: Tensor) -> Tensor:
    """Memory for as many numbers, contiguous."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def like_out(x: Tensor, pool: int) -> Tensor:
    """Memory for the output, in the layout of x."""
    rows, channels, height, width = x.shape
    return torch.empty(
        (rows, channels, height // pool, width // pool),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last(x) else torch.contiguous_format,
    )


def like_gradients(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for all gradients; empty for that of no residual."""
    dresidual = x.new_empty(0) if residual is None else like(x)
    return like(x), dresidual, like(weight), like(bias)


def forward(*inputs: Any) -> Tensor:
    """pool(act(norm(x) + residual))."""
    out = like_out(inputs[0], inputs[6])
    _run(_FORWARD, inputs, {}, {"out": out})
    return out


def backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, residual, weight and bias."""
    made = like_gradients(*inputs[:4])
    outputs = dict(zip(("x_grad", "residual_grad", "weight_grad", "bias_grad"), made, strict=True))
    if inputs[1] is None:
        del outputs["residual_grad"]
    _run(_BACKWARD, inputs, {"grad": grad}, outputs)
    return made


def double_backward(
    of_dx: Tensor | None,
    of_dresidual: Tensor | None,
    of_dweight: Tensor | None,
    of_dbias: Tensor | None,
    grad: Tensor,
    *inputs: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of grad, x and weight, from what comes in for the gradients of `backward`."""
    made = like(grad), like(inputs[0]), like(inputs[2])
    incoming = {
        "grad": grad,
        "x_cotangent": of_dx,
        "residual_cotangent": None if inputs[1] is None else of_dresidual,
        "weight_cotangent": of_dweight,
        "bias_cotangent": of_dbias,
    }
    outputs = dict(zip(("grad_grad", "x_grad", "weight_grad"), made, strict=True))
    _run(_DOUBLE_BACKWARD, inputs, incoming, outputs)
    return made


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Of the forward, and of the backward, whose gradient comes first among its inputs."""
    ctx.save_for_backward(*inputs[:-4])
    ctx.options = inputs[-4:]
    ctx.set_materialize_grads(False)


class _Function(torch.autograd.Function):
    """Without what torch does at each call to bind defaults, of which there are none: 60 us."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        """As torch's."""
        if transforms_are_active():
            return super().apply(*arguments)  # type: ignore[no-untyped-call]
        arguments = unwrap_dead_wrappers(arguments)
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]


class NormActPoolFunction(_Function):
    """`forward` with its derivative."""

    forward = staticmethod(forward)
    setup_context = staticmethod(keep_inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """Nothing for the options."""
        if grad is None:
            return (None,) * 8
        dx, dresidual, dweight, dbias = _BackwardFunction.apply(
            grad, *ctx.saved_tensors, *ctx.options
        )
        return dx, None if ctx.saved_tensors[1] is None else dresidual, dweight, dbias, *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """The mapped axis becomes more rows, and more sets of parameters."""
        return mapped(NormActPoolFunction.apply, info.batch_size, in_dims, inputs)


class _BackwardFunction(_Function):
    """`backward` with its derivative."""

    forward = staticmethod(backward)
    setup_context = staticmethod(keep_inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Nothing for residual and bias: the activation's second derivative is 0."""
        dgrad, dx, dweight = _DoubleBackwardFunction.apply(
            *cotangents, *ctx.saved_tensors, *ctx.options
        )
        return dgrad, dx, None, dweight, *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """As for the forward."""
        return mapped(_BackwardFunction.apply, info.batch_size, in_dims, inputs)


class _DoubleBackwardFunction(_Function):
    """`double_backward`, which has no derivative."""

    forward = staticmethod(double_backward)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(*_: Any) -> tuple[Tensor | None, ...]:
        """Refused."""
        raise RuntimeError(
            "norm_act_pool: its kernel has derivatives of first and second order; take torch's own "
            "operations for a third (backend='reference')"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """As for the forward."""
        return mapped(_DoubleBackwardFunction.apply, info.batch_size, in_dims, inputs)


def mapped(
    operation: Callable[..., Any], size: int, in_dims: tuple[Any, ...], arguments: tuple[Any, ...]
) -> Any:
    """The operation with the mapped axis folded into the first one of all tensors, and its axis."""
    folded = []
    for argument, dim in zip(arguments, in_dims, strict=True):
        if isinstance(argument, Tensor):
            argument = (
                argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            ).flatten(0, 1)
        folded.append(argument)
    made = operation(*folded)
    if isinstance(made, Tensor):
        return _unfolded(made, size), 0
    # A gradient of no residual is empty, and not mapped.
    return (
        tuple(each if each.dim() == 1 else _unfolded(each, size) for each in made),
        tuple(None if each.dim() == 1 else 0 for each in made),
    )


def _unfolded(tensor: Tensor, size: int) -> Tensor:
    return tensor.view(size, len(tensor) // size, *tensor.shape[1:])
