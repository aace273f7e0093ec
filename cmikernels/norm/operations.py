"""`norm_act_pool` and its derivatives, by a kernel, for autograd.

    forward(x, residual, weight, bias, ...) -> out
    backward(grad, x, ...) -> (dx, dresidual, dweight, dbias)
    double_backward(cotangents of these, grad, x, ...) -> (dgrad, dx, dweight)

Weight and bias are `(sets, channels)` in the arithmetic type; rows fall into so many sets of equal
size, one after another. So `torch.func.vmap` over them becomes one call with more rows and sets.
Backward keeps x and the residual; it makes statistics and activations anew, because a group is in
the nearest cache, or in registers, by then.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers

from cmikernels.backends import triton
from cmikernels.native import DTYPE_CODES, native
from cmikernels.norm import cpu
from cmikernels.norm.layout import channels_last, like, like_gradients, like_out
from cmikernels.norm.plan import MOST_CHANNELS_OF_GROUP
from cmikernels.transforms import transforms_are_active

FORWARD, BACKWARD, DOUBLE_BACKWARD = range(3)  # of cmik_norm_order
OPTIONS = 5
"""The last inputs of all operations: groups, slope, pool, eps, and the backend's name."""


def choose_backend(name: str | None, x: Tensor, groups: int) -> str:
    """The kernel that serves maps: "cpu" or "triton"; "reference" for torch's own operations.

    A `meta` tensor, on which operations are counted, goes the way of a GPU's.
    """
    if name is None:
        if x.dtype not in DTYPE_CODES:
            return "reference"
        if x.device.type == "cpu":
            return "cpu" if native is not None else "reference"
        return "reference" if _triton_obstacle(x, groups) else "triton"
    if name == "triton" and (reason := _triton_obstacle(x, groups)):
        raise ValueError(
            f"backend: 'triton' cannot run on a tensor of device {x.device.type}: {reason}"
        )
    return name


def _triton_obstacle(x: Tensor, groups: int) -> str | None:
    """Why the Triton kernels cannot serve maps; None when they can."""
    _, channels, height, width = x.shape
    if channels * height * width >= 2**31 or channels > groups * MOST_CHANNELS_OF_GROUP:
        return f"a group of more than {MOST_CHANNELS_OF_GROUP} channels, or 2^31 numbers an image"
    return None if x.is_meta else _obstacle_on(x.device.type)


def _obstacle_on(device_type: str) -> str | None:
    return triton.obstacle(device_type)


# As `torch.compiler.assume_constant_result` marks what is asked while tracing and not traced; but
# that one imports Dynamo, which takes long, and Triton with it.
_obstacle_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _run(
    order: int,
    inputs: tuple[Any, ...],
    incoming: dict[str, Tensor | None],
    outputs: dict[str, Tensor],
) -> None:
    """One call of the kernel of an order. Tensors without memory are left as they are."""
    if inputs[-1] == "cpu":
        cpu.run(order, inputs[:-1], incoming, outputs)
    elif not inputs[0].is_meta:
        launch = importlib.import_module("cmikernels.norm.launch")
        launch.run(order, inputs[:-1], incoming, outputs)


def _gradients_last(x: Tensor, backend: str) -> bool:
    """Whether gradients have channels last: those of x, but for the CPU kernel's."""
    return backend != "cpu" and channels_last(x)


def new_gradients(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for what `backward` makes."""
    x, residual, weight, bias, *_ = inputs
    return like_gradients(x, residual, weight, bias, _gradients_last(x, inputs[-1]))


def new_second_gradients(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what `double_backward` makes."""
    last = _gradients_last(inputs[0], inputs[-1])
    return like(grad, last), like(inputs[0], last), like(inputs[2])


def forward(*inputs: Any) -> Tensor:
    """pool(act(norm(x) + residual))."""
    out = like_out(inputs[0], inputs[6])
    _run(FORWARD, inputs, {}, {"out": out})
    return out


def backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, residual, weight and bias."""
    made = new_gradients(*inputs)
    outputs = dict(zip(("x_grad", "residual_grad", "weight_grad", "bias_grad"), made, strict=True))
    if inputs[1] is None:
        del outputs["residual_grad"]
    _run(BACKWARD, inputs, {"grad": grad}, outputs)
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
    made = new_second_gradients(grad, *inputs)
    incoming = {
        "grad": grad,
        "x_cotangent": of_dx,
        "residual_cotangent": None if inputs[1] is None else of_dresidual,
        "weight_cotangent": of_dweight,
        "bias_cotangent": of_dbias,
    }
    outputs = dict(zip(("grad_grad", "x_grad", "weight_grad"), made, strict=True))
    _run(DOUBLE_BACKWARD, inputs, incoming, outputs)
    return made


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Of the forward, and of the backward, whose gradient comes first among its inputs."""
    ctx.save_for_backward(*inputs[:-OPTIONS])
    ctx.options = inputs[-OPTIONS:]
    ctx.set_materialize_grads(False)


def of_inputs(
    ctx: Any, dx: Tensor, dresidual: Tensor, dweight: Tensor, dbias: Tensor
) -> tuple[Tensor | None, ...]:
    """What `backward` made, for each input of the forward."""
    of_residual = None if ctx.saved_tensors[1] is None else dresidual
    return dx, of_residual, dweight, dbias, *(None,) * OPTIONS


def of_backward_inputs(dgrad: Tensor, dx: Tensor, dweight: Tensor) -> tuple[Tensor | None, ...]:
    """What `double_backward` made, for each input of the backward.

    Residual and bias have none: the activation's second derivative is 0.
    """
    return dgrad, dx, None, dweight, None, *(None,) * OPTIONS


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
            return (None,) * (4 + OPTIONS)
        made = _BackwardFunction.apply(grad, *ctx.saved_tensors, *ctx.options)
        return of_inputs(ctx, *made)

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
        """Nothing for residual, bias and the options."""
        made = _DoubleBackwardFunction.apply(*cotangents, *ctx.saved_tensors, *ctx.options)
        return of_backward_inputs(*made)

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
