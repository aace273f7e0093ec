"""Bytes and launches of a second-order step of a ConvNet-3 on a GPU, counted without one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bench.budget.as_on_gpu import metered
from bench.budget.count import Count
from cmidd.networks import build_network

IMAGES = 100


def second_order_step(layout: torch.memory_format) -> Count:
    """Weight gradients of the training loss, and the derivative of a function of them.

    As trajectory matching takes it of a student's step: for weights and images.
    """
    network = build_network("convnet", 3, 32, 10).to("meta")
    network.to(memory_format=layout)  # type: ignore[call-overload]
    with torch.device("meta"):
        images = torch.empty(IMAGES, 3, 32, 32).contiguous(memory_format=layout).requires_grad_()
        labels = torch.empty(IMAGES, dtype=torch.int64)
    weights = list(network.parameters())

    def step() -> None:
        loss = F.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        torch.autograd.grad(gradients, [images, *weights], [torch.empty_like(g) for g in gradients])

    with metered() as meter:
        return meter.total(step)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_second_order_keeps_within_its_budget(layout: torch.memory_format) -> None:
    found = second_order_step(layout)
    for name, launches in sorted(found.operations.items()):
        print(f"{name:50} {launches:4}")
    print(f"{found.launches} launches, {found.bytes / IMAGES / 1e6:.2f} MB an image")
    assert found.operations["cmikernels::norm_act_pool_double_backward"] == 3 * 2
    assert found.launches <= 100
    assert found.bytes <= 18e6 * IMAGES
