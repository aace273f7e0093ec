"""Registers, spills and shared memory of the Triton kernel of `cmikernels.changes`, for named GPUs.

python -m tests.gpu.triton_changes_resources
python -m tests.gpu.triton_changes_resources --targets 90 --json out/resources.json

Needs no GPU, by the means of `triton_resources`.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from cmikernels.backends import triton as backend
from cmikernels.changes import operations
from tests.gpu import triton_resources
from tests.gpu.triton_resources import NoDevice, Variant, variants_of

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 128, 96)]  # channels, height, width


def compile_all(target: int) -> list[Variant]:
    """Compile what the calls would launch, in all kinds of passes."""
    import triton

    triton.runtime.driver.set_active(NoDevice(target))
    from cmikernels.backends.triton.launch import build_options
    from cmikernels.changes import kernel as of_changes

    caught: list[tuple[str, str, Any]] = []
    name = ""

    def compile_instead(kernel: Any, grid: Any, num_warps: int, **arguments: Any) -> None:
        compiled = kernel.warmup(grid=grid, **arguments, **build_options(num_warps))
        caught.append((name, kernel.fn.__name__, compiled))

    vars(of_changes)["launch"] = compile_instead
    backend.obstacle = lambda _: None  # type: ignore[assignment]
    for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.float64)):
        name = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
        images = torch.zeros(2, *shape, dtype=dtype, requires_grad=True)
        codes, numbers = torch.zeros(2, dtype=torch.int32), torch.ones(2, 4, dtype=dtype)
        out = operations.change(images, codes, numbers, colours=True)
        grad = torch.zeros_like(out).requires_grad_()
        (gradient,) = torch.autograd.grad(out, images, grad, create_graph=True)
        torch.autograd.grad(gradient, grad, torch.zeros_like(images))
    return variants_of(target, caught)


if __name__ == "__main__":
    triton_resources.main(compile_all, "tests.gpu.triton_changes_resources", __doc__)
