"""CMILoss is fused_cmi with its options fixed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from cmikernels import ClassIndex, CMILoss, fused_cmi
from tests.support.tables import (
    DEVICE_OF,
    REDUCTIONS,
    make_features,
    make_labels,
    make_probabilities,
)

LABELS = make_labels((4, 1, 6), shuffle_seed=0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_module_equals_function(backend: str, reduction: str) -> None:
    z = make_features(11, 6).to(DEVICE_OF[backend]).requires_grad_()
    labels = LABELS.to(z.device)
    module = CMILoss(
        num_classes=5, temperature=2.0, weight=-3.0, reduction=reduction, backend=backend
    )
    ours = module(z, labels)
    expected = fused_cmi(
        z,
        labels,
        num_classes=5,
        temperature=2.0,
        weight=-3.0,
        reduction=reduction,
        backend=backend,
    )
    assert torch.equal(ours, expected)
    (ours_gradient,) = torch.autograd.grad(ours.sum(), z)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), z)
    assert torch.equal(ours_gradient, expected_gradient)


def test_module_takes_what_the_function_takes(backend: str) -> None:
    device = DEVICE_OF[backend]
    module = CMILoss(backend=backend)
    features, labels = make_features(11, 6).to(device), LABELS.to(device)
    centroids = make_probabilities((3, 6)).to(device)
    assert torch.equal(module(features, ClassIndex(labels)), module(features, labels))
    assert torch.equal(
        module(features, labels, centroids=centroids),
        fused_cmi(features, labels, centroids=centroids, backend=backend),
    )
    groups = make_features((3, 4), 6).to(device)
    assert torch.equal(module(groups), fused_cmi(groups, backend=backend))


def test_defaults_are_the_functions() -> None:
    features = make_features(11, 6)
    assert torch.equal(CMILoss()(features, LABELS), fused_cmi(features, LABELS))


def test_module_has_no_state() -> None:
    assert not CMILoss().state_dict()
    assert not list(CMILoss().parameters())


def test_repr_shows_the_options() -> None:
    module = CMILoss(num_classes=7, temperature=2.0, weight=0.5, reduction="sum", backend="cpu")
    assert repr(module) == (
        "CMILoss(num_classes=7, temperature=2.0, weight=0.5, reduction='sum', backend='cpu')"
    )


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_computes_the_same(how: str) -> None:
    module = CMILoss(num_classes=4, temperature=2.0, weight=0.5, reduction="class")
    copied = pickle.loads(pickle.dumps(module)) if how == "pickle" else copy.deepcopy(module)
    features = make_features(11, 6)
    assert torch.equal(copied(features, LABELS), module(features, LABELS))
    assert repr(copied) == repr(module)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_of_a_class_index_is_the_same_index(how: str) -> None:
    index = ClassIndex(LABELS, 5)
    copied = pickle.loads(pickle.dumps(index)) if how == "pickle" else copy.deepcopy(index)
    features = make_features(11, 6)
    assert torch.equal(fused_cmi(features, copied), fused_cmi(features, index))
    assert repr(copied) == repr(index)
