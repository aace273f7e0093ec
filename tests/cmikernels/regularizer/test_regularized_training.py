"""The op in a training loop: loss scales, autocast, gradient checkpoints, DDP."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmikernels import CMILoss, fused_cmi
from tests.support.compare import assert_gradient, relative_error
from tests.support.oracle import Oracle
from tests.support.tables import DEVICE_OF, DTYPES, make_features, make_labels

LABELS = make_labels((4, 1, 0, 6), shuffle_seed=1)


def leaf(backend: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return make_features(11, 6, dtype=dtype).to(DEVICE_OF[backend]).requires_grad_()


def test_a_scaled_and_added_loss_gets_the_scaled_gradient(backend: str) -> None:
    z = leaf(backend)
    loss = 3 * fused_cmi(z, LABELS.to(z.device), backend=backend) + z.square().sum()
    (gradient,) = torch.autograd.grad(loss, z)
    expected = 3 * Oracle(z, LABELS).gradient() + 2 * z.detach().cpu().double()
    assert relative_error(gradient, expected) < 1e-5


def test_float16_survives_a_loss_scale(backend: str) -> None:
    """Scaled before it is rounded: gradients below 6e-8 would be gone before a scaler helps."""
    z = (make_features(64, 512, 0.01, torch.float16)).to(DEVICE_OF[backend]).requires_grad_()
    labels = make_labels((32, 32))
    value = fused_cmi(z, labels.to(z.device), backend=backend)
    scale = 2.0**16
    (gradient,) = torch.autograd.grad(value * scale, z)
    expected = Oracle(z, labels).gradient() * scale
    assert_gradient(gradient.cpu(), expected, torch.float16)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(backend: str, use_reentrant: bool) -> None:
    z = leaf(backend)
    labels = LABELS.to(z.device)
    value = checkpoint(
        lambda x: fused_cmi(x.tanh(), labels, backend=backend), z, use_reentrant=use_reentrant
    )
    torch.autograd.backward(value)
    (expected,) = torch.autograd.grad(fused_cmi(z.tanh(), labels, backend=backend), z)
    assert z.grad is not None
    assert torch.equal(z.grad, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_does_not_touch_the_arithmetic(backend: str, dtype: torch.dtype) -> None:
    z = leaf(backend, dtype)
    labels = LABELS.to(z.device)
    with torch.autocast(z.device.type, dtype=torch.bfloat16):
        inside = fused_cmi(z, labels, backend=backend)
        (gradient_inside,) = torch.autograd.grad(inside, z)
    outside = fused_cmi(z, labels, backend=backend)
    (gradient_outside,) = torch.autograd.grad(outside, z)
    assert torch.equal(inside, outside)
    assert torch.equal(gradient_inside, gradient_outside)


def test_autocast_network_trains(backend: str) -> None:
    device = DEVICE_OF[backend]
    network = nn.Linear(6, 8).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        features = network(make_features(11, 6).to(device))
        value = fused_cmi(features, LABELS.to(device), backend=backend)
    torch.autograd.backward(value)
    assert features.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert network.weight.grad is not None
    assert network.weight.grad.isfinite().all()
    assert network.weight.grad.any()


class _Network(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.loss = CMILoss(backend=backend)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.loss(self.linear(images), labels)
        return value


def test_ddp_gives_the_gradient_of_the_bare_network(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without it gloo looks up the host's name, and warns where nobody knows it.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.manual_seed(0)
    device = DEVICE_OF[backend]
    bare = _Network(backend).to(device)
    images, labels = make_features(11, 6).to(device), LABELS.to(device)
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    # The wrapper must be gone when the group goes: torch waits for the group's threads with the GIL
    # held if the wrapper goes later, and now and then those wait for the GIL.
    try:
        distributed = _weight_gradient(
            nn.parallel.DistributedDataParallel(copy.deepcopy(bare)), images, labels
        )
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(distributed, _weight_gradient(bare, images, labels))


def _weight_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    torch.autograd.backward(network(images, labels))
    gradient = next(network.parameters()).grad
    assert gradient is not None
    return gradient.clone()
