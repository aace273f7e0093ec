"""Every convolution that is computed, forward and backward: its dtype, and torch's attributes.

And those of the products of matrices, many at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Convolution(NamedTuple):
    op: str
    dtype: torch.dtype
    attribute: str  # of cuDNN's convolutions, as it reads
    groups: int


class Product(NamedTuple):
    shape: torch.Size  # of what is made
    dtype: torch.dtype
    attribute: str  # of matrix products on GPUs, as it reads


class Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd, autocast and vmap, so that their derivatives are seen too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Convolution] = []
        self.products: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "convolution" in str(func):
            attribute = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
            (dtype,) = {each.dtype for each in args if isinstance(each, Tensor)}
            groups = args[9 if "backward" in str(func) else 8]
            self.seen.append(Convolution(str(func), dtype, attribute, groups))
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.bmm:
            attribute = torch.backends.cuda.matmul.fp32_precision
            self.products.append(Product(made.shape, made.dtype, attribute))
        return made

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {each.dtype for each in self.seen}

    @property
    def attributes(self) -> set[str]:
        return {each.attribute for each in self.seen}

    @property
    def went_backward(self) -> bool:
        return any("backward" in each.op for each in self.seen)
