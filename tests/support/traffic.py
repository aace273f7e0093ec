"""What a program would move and launch on a GPU, counted on `meta` tensors without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Kernels of an operation; others that are no views have one.
_LAUNCHES = {
    "cmikernels::norm_act_pool_backward": 2,  # itself, and sums over rows for weight and bias
    "cmikernels::norm_act_pool_double_backward": 2,
}
_FREE = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::detach")


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts launches and bytes: each operation reads all it is given and writes all it makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches, self.bytes = 0, 0
        self.by_name: dict[str, tuple[int, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operation."""
        made = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func.is_view or name.startswith(_FREE):
            return made
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)]
        launches = _LAUNCHES.get(name, 1)
        if name == "aten::convolution_backward":  # one for each gradient that is asked for
            launches = sum(each is not None for each in made)
        moved = sum(_bytes_of(tensor) for tensor in tensors)
        self.launches += launches
        self.bytes += moved
        before = self.by_name.get(name, (0, 0))
        self.by_name[name] = before[0] + launches, before[1] + moved
        return made


def _bytes_of(tensor: Tensor) -> int:
    """Of the numbers in memory: what is expanded is there once."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0]
    return int(torch.Size(sizes).numel()) * tensor.element_size()
