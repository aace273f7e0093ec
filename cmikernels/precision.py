"""The precision that networks compute in, set for as long as they compute and no longer.

float32     convolutions and matrix products in float32
tf32        convolutions round their inputs to 10 bits of mantissa, on GPUs that can
bfloat16    convolutions and matrix products of a forward and its backward, by autocast

Matrix products in float32 tensors stay float32 in all three, as torch's default has it, but for
those that take the place of a convolution. Meanwhile cuDNN takes algorithms that give the same bits
every time, and does not choose them by their speed. torch keeps all of this but bfloat16 in
attributes of the whole process: other threads see them while they are set, and until they are put
back torch may refuse to read the older `allow_tf32`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("float32", "tf32", "bfloat16")


def check_precision(precision: str | None, device_type: str | None = None) -> None:
    """Raise where there is no such precision, or none on such a device."""
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision: expected {' or '.join(PRECISIONS)}, got {precision!r}")
    if precision == "tf32" and device_type not in (None, "cuda"):
        raise ValueError(
            f"precision: tf32 is of GPUs, got images on {device_type}; take float32 there"
        )


@contextmanager
def computing(
    precision: str | None, device_type: str, *, network: bool = False, products: bool = False
) -> Iterator[None]:
    """Compute so inside, and put back after it what was set before.

    Args:
        precision: one of `PRECISIONS`; None leaves torch's attributes as they are.
        device_type: of the tensors: cpu, cuda.
        network: whether this is a network's forward, which bfloat16 is for. All else, backward
            included, has autocast off: a backward goes by the dtypes that its forward had.
        products: whether matrix products in float32 tensors round as convolutions do, whose place
            they take.
    """
    before = [] if precision is None else _attributes()
    rounding = "tf32" if precision == "tf32" else "ieee"
    values = (rounding, rounding if products else "ieee", True, False)
    try:
        for (holder, name, _), value in zip(before, values, strict=False):
            setattr(holder, name, value == "tf32" if name == "allow_tf32" else value)
        with _autocast(device_type, enabled=network and precision == "bfloat16"):
            yield
    finally:
        for holder, name, own in before:
            setattr(holder, name, own)


def _autocast(device_type: str, *, enabled: bool) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device_type):  # meta, for example
        return nullcontext()
    # Without its cache, which would hold tensors of one transform of torch.func for the next.
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled, cache_enabled=False)


_NEW = "fp32_precision"


def _attributes() -> list[tuple[Any, str, Any]]:
    """What is set: whose attribute, which, and its own value.

    Of convolutions and of matrix products, and how cuDNN chooses algorithms.
    """
    backends: Any = torch.backends
    cudnn, products = backends.cudnn, backends.cuda.matmul
    choice = [(cudnn, name, getattr(cudnn, name)) for name in ("deterministic", "benchmark")]
    convolutions = getattr(cudnn, "conv", None)
    if not hasattr(convolutions, _NEW):  # torch before 2.9
        older = [(holder, "allow_tf32", holder.allow_tf32) for holder in (cudnn, products)]
        return [*older, *choice]
    parents = (backends, cudnn)
    own = [(holder, _NEW, _own([*parents, holder])) for holder in (convolutions, products)]
    return [*own, *choice]


def _own(chain: Sequence[Any]) -> str:
    """The last one's own value, "none" where it inherits: reading gives what is inherited.

    Where it reads as its parent does, only another value of the parent can tell.
    """
    *parents, holder = chain
    value: str = getattr(holder, _NEW)
    if not parents or value == "none" or value != getattr(parents[-1], _NEW):
        return value
    of_parent = _own(parents)
    setattr(parents[-1], _NEW, "ieee" if value == "tf32" else "tf32")
    inherits = getattr(holder, _NEW) != value
    setattr(parents[-1], _NEW, of_parent)
    return "none" if inherits else value


def with_gradients(
    function: Callable[[Tensor], Tensor], images: Tensor, precision: str | None
) -> Tensor:
    """`function(images)`, whose first and second derivatives too compute in this precision.

    They are taken later, where torch's attributes are the caller's again, so each makes the
    graph anew inside `computing`. bfloat16 is not of the attributes, but of the graph.
    """
    if precision in (None, "bfloat16") or not (torch.is_grad_enabled() and images.requires_grad):
        return function(images)
    out: Tensor = _Function.apply(images, function, precision)  # type: ignore[no-untyped-call]
    return out


class _Function(torch.autograd.Function):
    """The function without its graph."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor], precision: str
    ) -> Tensor:
        ctx.save_for_backward(images)
        ctx.function, ctx.precision = function, precision
        return function(images)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None]:
        (images,) = ctx.saved_tensors
        of_images: Tensor = _Gradient.apply(  # type: ignore[no-untyped-call]
            images, incoming, ctx.function, ctx.precision
        )
        return of_images, None, None


class _Gradient(torch.autograd.Function):
    """The function's gradient, and its own derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        incoming: Tensor,
        function: Callable[[Tensor], Tensor],
        precision: str,
    ) -> Tensor:
        ctx.save_for_backward(images, incoming)
        ctx.function, ctx.precision = function, precision
        return _gradient(images.detach().requires_grad_(), incoming, function, precision)

    @staticmethod
    def backward(ctx: Any, second: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"precision: expected first and second derivatives in {ctx.precision}, got a "
                "second one with create_graph; None keeps the graph that a third needs"
            )
        images, incoming = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        gradient = _gradient(images, incoming, ctx.function, ctx.precision, create_graph=True)
        with computing(ctx.precision, images.device.type):
            of_images, of_incoming = torch.autograd.grad(gradient, (images, incoming), second)
        return of_images, of_incoming, None, None


def _gradient(
    images: Tensor,
    incoming: Tensor,
    function: Callable[[Tensor], Tensor],
    precision: str,
    *,
    create_graph: bool = False,
) -> Tensor:
    with torch.enable_grad(), computing(precision, images.device.type):
        out = function(images)
        (gradient,) = torch.autograd.grad(out, images, incoming, create_graph=create_graph)
    return gradient
