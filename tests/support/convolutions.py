"""Every convolution that is computed, forward and backward: its dtype, and torch's attributes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Convolution(NamedTuple):
    op: str
    dtype: torch.dtype
    attribute: str  # of cuDNN's convolutions, as it reads


class Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd, autocast and vmap, so that their derivatives are seen too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Convolution] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "convolution" in str(func):
            attribute = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
            (dtype,) = {each.dtype for each in args if isinstance(each, Tensor)}
            self.seen.append(Convolution(str(func), dtype, attribute))
        return func(*args, **(kwargs or {}))

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {each.dtype for each in self.seen}

    @property
    def attributes(self) -> set[str]:
        return {each.attribute for each in self.seen}

    @property
    def went_backward(self) -> bool:
        return any("backward" in each.op for each in self.seen)
