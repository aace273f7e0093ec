"""`torch.func` is refused in words that say what to do, where it cannot be served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, class_centroids, cmi_value_and_grad, fused_cmi
from tests.support.compare import relative_error
from tests.support.tables import DEVICE_OF, make_features, make_labels, make_probabilities

LABELS = make_labels((4, 1, 6), shuffle_seed=0)
INDEX = ClassIndex(LABELS)
FEATURES = make_features((5, 11), 8)
ONE = FEATURES[0]
GIVE_ALL_AT_ONCE = r"vmap is refused.*give .*at once as features \(\.\.\., C, n, M\)"


@pytest.mark.parametrize("function", [fused_cmi, cmi_value_and_grad, class_centroids])
def test_vmap_over_features(backend: str, function: Callable[..., Any]) -> None:
    if backend == "reference":
        pytest.skip("serves it")
    index = INDEX.to(DEVICE_OF[backend])
    mapped = torch.func.vmap(lambda z: function(z, index, backend=backend))
    with pytest.raises(RuntimeError, match=f"features: torch.func.{GIVE_ALL_AT_ONCE}"):
        mapped(FEATURES.to(DEVICE_OF[backend]))


def test_vmap_over_features_of_the_plain_formula_is_served() -> None:
    mapped = torch.func.vmap(lambda z: fused_cmi(z, INDEX, backend="reference"))
    expected = torch.stack([fused_cmi(z, INDEX) for z in FEATURES])
    assert relative_error(mapped(FEATURES), expected) < 1e-6


def test_vmap_over_features_with_a_gradient() -> None:
    mapped = torch.func.vmap(lambda z: fused_cmi(z, INDEX))
    with pytest.raises(RuntimeError, match=f"features: torch.func.{GIVE_ALL_AT_ONCE}"):
        mapped(FEATURES.clone().requires_grad_())


def test_vmap_over_labels() -> None:
    mapped = torch.func.vmap(lambda y: fused_cmi(ONE, y, num_classes=3))
    with pytest.raises(RuntimeError, match=r"classes: torch.func.vmap is refused.*once for each"):
        mapped(LABELS.expand(5, -1))


def test_vmap_over_centroids() -> None:
    mapped = torch.func.vmap(lambda q: fused_cmi(ONE, INDEX, centroids=q))
    with pytest.raises(RuntimeError, match=f"centroids: torch.func.{GIVE_ALL_AT_ONCE}"):
        mapped(make_probabilities((5, 3, 8)))


def test_vmap_over_something_else_does_not_matter() -> None:
    mapped = torch.func.vmap(lambda x: x * fused_cmi(ONE, INDEX))
    assert torch.equal(mapped(torch.ones(5)), fused_cmi(ONE, INDEX).expand(5))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.hessian])
def test_gradient_transforms(transform: Callable[..., Any]) -> None:
    for classes in (INDEX, LABELS):
        with pytest.raises(RuntimeError, match=r"features: torch.func.grad,.*torch.autograd.grad"):
            transform(lambda z, y=classes: fused_cmi(z, y))(ONE)


def test_jvp_is_served_by_the_plain_formula() -> None:
    value, rate, *_ = torch.func.jvp(lambda z: fused_cmi(z, INDEX), (ONE,), (FEATURES[1],))
    assert relative_error(value, fused_cmi(ONE, INDEX)) < 1e-6
    _, gradient = cmi_value_and_grad(ONE, INDEX)
    assert relative_error(rate, (gradient * FEATURES[1]).sum()) < 1e-5


@pytest.mark.parametrize("reduction", ["mean", "class", "none"])
def test_batches_of_gradients(reduction: str) -> None:
    z = ONE.clone().requires_grad_()
    value = fused_cmi(z, INDEX, reduction=reduction)
    batch: Tensor = torch.ones((2, *value.shape))
    with pytest.raises(RuntimeError, match=r"a batch of gradients .*is refused; take them one by"):
        torch.autograd.grad(value, z, batch, is_grads_batched=True)
