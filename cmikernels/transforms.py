"""What `torch.func` wraps has no memory that a kernel could read: refused, with what to do instead.

vmap, is_grads_batched    a batched tensor
grad, vjp, jacrev         a tensor that tracks a gradient of its own
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_gradtrackingtensor, is_legacy_batchedtensor
from torch.autograd import forward_ad

# True while a transform of torch.func runs; a question of nanoseconds.
transforms_are_active = torch._C._are_functorch_transforms_active


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation goes through: rare, and left to plain formulas."""
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def refuse_vmap(name: str, tensor: Tensor | None, instead: str) -> None:
    """Raise where `torch.func.vmap` goes over a tensor."""
    if transforms_are_active() and tensor is not None and is_batchedtensor(tensor):
        raise RuntimeError(
            f"{name}: torch.func.vmap is refused, got a tensor that it batches; {instead}"
        )


def refuse_func_grad(name: str, tensor: Tensor) -> None:
    """Raise where `torch.func.grad` or one of its kin differentiates."""
    if transforms_are_active() and is_gradtrackingtensor(tensor):
        raise RuntimeError(
            f"{name}: torch.func.grad, vjp, jacrev and hessian are refused, got a tensor that they "
            "track; use torch.autograd.grad"
        )


def refuse_transforms(features: Tensor, centroids: Tensor | None, incoming: Tensor | None) -> None:
    """Raise where a kernel would read a tensor that a transform has wrapped."""
    if incoming is not None and is_legacy_batchedtensor(incoming):
        raise RuntimeError(
            "gradient of the value: a batch of gradients (is_grads_batched, vectorize) is refused; "
            "take them one by one"
        )
    if transforms_are_active():
        instead = (
            "give all at once as features (..., C, n, M), or, without a gradient, take "
            "backend='reference'"
        )
        refuse_vmap("features", features, instead)
        refuse_vmap("centroids", centroids, instead)
        refuse_func_grad("features", features)
