"""Norm, activation and pooling between two convolutions, in one pass over the maps.

    out = pool(act(weight * norm(x) + bias + residual))

norm    over groups of channels of an image: instance norm where every channel is a group
act     ReLU, leaky ReLU or none
pool    means of 2 x 2 entries, or none

First and second derivatives are exact and take one pass each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmikernels.native import has_memory
from cmikernels.norm import compiled, operations
from cmikernels.problem import arithmetic_dtype
from cmikernels.transforms import has_tangent, transforms_are_active

_SLOPES = {"relu": 0.0, "leakyrelu": 0.01, "none": 1.0}


def norm_act_pool(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    groups: int | None = None,
    activation: str = "relu",
    pool: int = 2,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Group norm, activation and average pooling as one operation.

    Maps on a CPU and on GPUs that Triton serves go through a kernel, whose sums are float32 for
    half types and whose derivatives end with the second. Elsewhere torch's own operations are
    called.

    Args:
        x: maps `(N, channels, height, width)`, float32, float64, bfloat16 or float16.
        weight: of each channel after the norm; None is 1.
        bias: of each channel after the norm; None is 0.
        groups: that the channels fall into. None is instance norm: one for each channel.
        activation: "relu", "leakyrelu" (0.01 below zero) or "none".
        pool: 2 for means of 2 x 2 entries, of which an odd last row or column is left out; 1 for
            none.
        eps: added to the variance.
        residual: added before the activation, in the shape and dtype of x.
        backend: "triton" for the Triton kernels or an error, "reference" for torch's own operations
            everywhere.

    Returns:
        `(N, channels, height // pool, width // pool)` in the dtype of x.

    Example:
        >>> maps = torch.randn(8, 16, 32, 32)
        >>> norm_act_pool(maps).shape
        torch.Size([8, 16, 16, 16])
    """
    groups = _checked_groups(x, groups)
    _check_parameters(x, weight, bias, residual)
    slope = _checked_options(x, activation, pool, eps)
    if backend not in (None, "triton", "reference"):
        raise ValueError(f"backend: expected None, 'triton' or 'reference', got {backend!r}")
    backend = operations.choose_backend(backend, x, groups)
    if backend == "reference" or not _kernel_serves(x, weight, bias, residual):
        return _plain(x, weight, bias, groups, slope, pool, eps, residual)
    arithmetic = arithmetic_dtype(x.dtype)
    scale, shift = (
        x.new_full((1, x.shape[1]), otherwise, dtype=arithmetic)
        if given is None
        else given.to(arithmetic).unsqueeze(0)
        for given, otherwise in ((weight, 1.0), (bias, 0.0))
    )
    call: Any = operations.NormActPoolFunction.apply
    if torch.compiler.is_compiling() or not (has_memory(x) or transforms_are_active()):
        call = compiled.norm_act_pool
    elif not torch.is_grad_enabled() and not transforms_are_active():
        call = operations.forward
    out: Tensor = call(x, residual, scale, shift, groups, slope, pool, eps, backend)
    return out


class NormActPool(nn.GroupNorm):
    """`norm_act_pool` as a module: an `nn.GroupNorm` with what follows it.

    Its state is that of `nn.GroupNorm`, so old states load.

    Args:
        groups: that the channels fall into; as many as channels for instance norm.
        channels: of the maps.
        activation: "relu", "leakyrelu" or "none".
        pool: 2 or 1.
        eps: added to the variance.
        affine: whether there are weight and bias.

    Example:
        >>> block = NormActPool(16, 16)
        >>> block(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 16, 16, 16])
    """

    def __init__(
        self,
        groups: int,
        channels: int,
        activation: str = "relu",
        pool: int = 2,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__(groups, channels, eps, affine)
        self.activation, self.pool = activation, pool

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """pool(act(norm(x) + residual))."""
        return norm_act_pool(
            x, self.weight, self.bias, self.num_groups, self.activation, self.pool, self.eps,
            residual,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Options, for `print(module)`."""
        return f"{super().extra_repr()}, activation={self.activation!r}, pool={self.pool}"


def _plain(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    slope: float,
    pool: int,
    eps: float,
    residual: Tensor | None,
) -> Tensor:
    """The same by torch's own operations."""
    y = F.group_norm(x, groups, weight, bias, eps)
    if residual is not None:
        y = y + residual
    if slope != 1:
        # In place: neither norm nor sum needs its result for its derivative.
        y = F.leaky_relu(y, slope, inplace=True) if slope else F.relu(y, inplace=True)
    return F.avg_pool2d(y, pool) if pool > 1 else y


def _kernel_serves(*tensors: Tensor | None) -> bool:
    """Whether kernels take them: not where forward-mode differentiation goes through."""
    return not any(tensor is not None and has_tangent(tensor) for tensor in tensors)


def _checked_groups(x: Tensor, groups: int | None) -> int:
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(
            f"x: expected maps (N, channels, height, width), got shape {tuple(x.shape)}"
        )
    channels = x.shape[1]
    if groups is None:
        return channels
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: expected a divisor of the {channels} channels, got {groups}")
    return groups


def _checked_options(x: Tensor, activation: str, pool: int, eps: float) -> float:
    """The activation's slope below zero."""
    if activation not in _SLOPES:
        raise ValueError(f"activation: expected one of {', '.join(_SLOPES)}, got {activation!r}")
    if pool not in (1, 2):
        raise ValueError(f"pool: expected 2 (means of 2 x 2) or 1 (none), got {pool!r}")
    if min(x.shape[2:]) < pool:
        raise ValueError(
            f"pool: expected maps of {pool} x {pool} or more, got {x.shape[2]} x {x.shape[3]}"
        )
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    return _SLOPES[activation]


def _check_parameters(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[1:2]:
            raise ValueError(
                f"{name}: expected one number for each of the {x.shape[1]} channels, got shape "
                f"{tuple(parameter.shape)}"
            )
    if residual is not None and (residual.shape, residual.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"residual: expected shape and dtype of x, {tuple(x.shape)} {x.dtype}, got "
            f"{tuple(residual.shape)} {residual.dtype}"
        )
