"""Bytes and launches of a second-order step of a ConvNet-3 on a GPU, counted without one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmidd.networks import build_network
from tests.support.traffic import Traffic

IMAGES = 100


def second_order_step(traffic: Traffic, layout: torch.memory_format) -> None:
    """Weight gradients of the training loss, and the derivative of a function of them.

    As trajectory matching takes it of a student's step: for weights and images.
    """
    network = build_network("convnet", 3, 32, 10).to("meta")
    network.to(memory_format=layout)  # type: ignore[call-overload]
    with torch.device("meta"):
        images = torch.empty(IMAGES, 3, 32, 32).contiguous(memory_format=layout).requires_grad_()
        labels = torch.empty(IMAGES, dtype=torch.int64)
    weights = list(network.parameters())
    with traffic:
        loss = F.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        torch.autograd.grad(gradients, [images, *weights], [torch.empty_like(g) for g in gradients])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_second_order_keeps_within_its_budget(layout: torch.memory_format) -> None:
    traffic = Traffic()
    second_order_step(traffic, layout)
    for name, (launches, moved) in sorted(traffic.by_name.items()):
        print(f"{name:50} {launches:4} {moved / IMAGES / 1e6:8.2f} MB an image")
    print(f"{traffic.launches} launches, {traffic.bytes / IMAGES / 1e6:.2f} MB an image")
    assert traffic.by_name["cmikernels::norm_act_pool_double_backward"][0] == 3 * 2
    assert traffic.launches <= 100
    assert traffic.bytes <= 18e6 * IMAGES
