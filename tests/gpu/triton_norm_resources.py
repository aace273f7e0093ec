"""Registers, spills and shared memory of the Triton kernels of `norm_act_pool`, for named GPUs.

python -m tests.gpu.triton_norm_resources
python -m tests.gpu.triton_norm_resources --targets 90 --json out/resources.json

Needs no GPU, by the means of `triton_resources`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmikernels import norm_act_pool
from cmikernels.backends import triton as backend
from cmikernels.problem import arithmetic_dtype
from tests.gpu import triton_resources
from tests.gpu.triton_resources import NoDevice, Variant, variants_of


class Case(NamedTuple):
    """Maps of an image, and what is done to them."""

    channels: int
    height: int
    width: int
    groups: int
    pool: int = 2
    last: bool = False
    dtype: torch.dtype = torch.float32
    residual: bool = False

    def __str__(self) -> str:
        """Give the form used in tables."""
        sizes = f"{self.channels}x{self.height}x{self.width} in {self.groups}"
        layout = "channels last" if self.last else "contiguous"
        parts = [sizes, f"pool {self.pool}", str(self.dtype).removeprefix("torch."), layout]
        return " ".join([*parts, "residual"] if self.residual else parts)


# Maps of ConvNets and of a ResNet-18 at 32 x 32, odd ones, and those that are swept.
def cases() -> Iterator[Case]:
    """What takes most registers of each kind."""
    yield Case(128, 32, 32, 128, 2)
    yield Case(64, 64, 64, 64, 2, dtype=torch.float64)
    for case in (
        Case(128, 32, 32, 128, 2),
        Case(64, 32, 32, 64, 1, dtype=torch.bfloat16, residual=True),
        Case(64, 31, 29, 64, 2, residual=True),
        Case(128, 16, 16, 128, 2, dtype=torch.float16),
        Case(64, 128, 128, 4, 2, residual=True),
    ):
        yield case._replace(last=True)


def compile_all(target: int) -> list[Variant]:
    """Compile what the calls would launch."""
    import triton

    triton.runtime.driver.set_active(NoDevice(target))
    from cmikernels.backends.triton.launch import build_options
    from cmikernels.norm import launch

    caught: list[tuple[str, str, Any]] = []
    name = ""

    def compile_instead(kernel: Any, grid: Any, num_warps: int, **arguments: Any) -> None:
        options = build_options(num_warps)
        compiled = kernel.warmup(grid=grid, **arguments, **options)
        caught.append((name, kernel.fn.__name__, compiled))

    vars(launch)["launch"] = compile_instead
    backend.obstacle = lambda _: None  # type: ignore[assignment]
    for case in cases():
        name = str(case)
        _call(case)
    return variants_of(target, caught)


def _call(case: Case) -> None:
    """All three orders, on tensors whose memory is never read."""
    shape = 1, case.channels, case.height, case.width

    def maps(*size: int) -> Tensor:
        made = torch.zeros(size, dtype=case.dtype)
        return made.contiguous(memory_format=torch.channels_last) if case.last else made

    x = maps(*shape).requires_grad_()
    residual = maps(*shape).requires_grad_() if case.residual else None
    weight, bias = (
        torch.zeros(case.channels, dtype=arithmetic_dtype(case.dtype)).requires_grad_()
        for _ in range(2)
    )
    out = norm_act_pool(
        x, weight, bias, case.groups, "relu", case.pool, residual=residual, backend="triton"
    )
    given = [each for each in (x, weight, bias, residual) if each is not None]
    grad = torch.zeros_like(out).requires_grad_()
    gradients = torch.autograd.grad(out, given, grad, create_graph=True)
    torch.autograd.grad(gradients, [x, weight, grad], [torch.zeros_like(g) for g in gradients])


if __name__ == "__main__":
    triton_resources.main(compile_all, "tests.gpu.triton_norm_resources", __doc__)
