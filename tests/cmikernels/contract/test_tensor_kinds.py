"""Tensors that are not plain memory: fake, wrapped, traced, dual. Right, or refused; never read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor

from cmikernels import class_centroids, cmi_value_and_grad, fused_cmi
from tests.support.oracle import Oracle
from tests.support.tables import DEVICE_OF, make_features, make_labels

LABELS = make_labels((5, 2, 4), shuffle_seed=0)


@pytest.mark.parametrize("reduction", ["mean", "class", "none"])
def test_fake_features_give_a_fake_value_of_the_right_shape(reduction: str) -> None:
    shape = fused_cmi(make_features(11, 7), LABELS, num_classes=3, reduction=reduction).shape
    with FakeTensorMode() as mode:
        features = mode.from_tensor(make_features(11, 7))
        labels = mode.from_tensor(LABELS)
        value = fused_cmi(features, labels, num_classes=3, reduction=reduction)
    assert value.shape == shape
    assert value.dtype == torch.float32


@pytest.mark.parametrize("function", [cmi_value_and_grad, class_centroids])
def test_functions_that_need_memory_refuse_fake_features(function: object) -> None:
    assert callable(function)
    with FakeTensorMode() as mode, pytest.raises(TypeError, match=r"features: .*plain tensor"):
        function(mode.from_tensor(make_features((3, 4), 5)))


def test_a_wrapper_subclass_is_computed_through_the_registered_op() -> None:
    one, two = make_features((3, 4), 8), make_features((3, 4), 8, seed=1)
    value = fused_cmi(TwoTensor(one, two))  # type: ignore[no-untyped-call]
    assert isinstance(value, TwoTensor)
    assert torch.equal(value.a, fused_cmi(one))
    assert torch.equal(value.b, fused_cmi(two))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_jit_trace_computes_anew() -> None:
    trace: Any = torch.jit.trace
    traced = trace(lambda z: fused_cmi(z), make_features((3, 4), 8), check_trace=False)
    fresh = make_features((3, 4), 8, seed=1)
    assert torch.equal(traced(fresh), fused_cmi(fresh))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_forward_mode_differentiation_carries_the_tangent(backend: str, reduction: str) -> None:
    device = DEVICE_OF[backend]
    z, tangent = (make_features(11, 7, seed=seed).double().to(device) for seed in (0, 1))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, tangent)  # type: ignore[no-untyped-call]
        value = fused_cmi(dual, LABELS.to(device), reduction=reduction, backend=backend)
        rate = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    step = 1e-6
    ahead, behind = (
        Oracle(z + sign * step * tangent, LABELS, reduction=reduction).value for sign in (1, -1)
    )
    expected = (ahead - behind).reshape(-1) / (2 * step)
    assert torch.allclose(rate.reshape(-1).cpu(), expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "class", "none"])
def test_a_default_device_elsewhere_does_not_matter(backend: str, reduction: str) -> None:
    z = make_features(11, 7).to(DEVICE_OF[backend]).requires_grad_()
    labels = LABELS.to(z.device)
    expected = cmi_value_and_grad(z, labels, reduction=reduction, backend=backend)
    centroids = class_centroids(z.detach(), labels, backend=backend)
    with torch.device("meta"):
        value = fused_cmi(z, labels, reduction=reduction, backend=backend)
        value.backward(torch.ones_like(value) * 2)  # type: ignore[no-untyped-call]
        elsewhere = class_centroids(z.detach(), labels, backend=backend)
    assert torch.equal(value, expected[0])
    assert z.grad is not None
    assert torch.allclose(z.grad, expected[1] * 2, rtol=1e-5, atol=1e-6)
    assert torch.equal(elsewhere, centroids)
