"""Class-positive InfoNCE where classes are far apart, and where there is one alone."""

from __future__ import annotations

import pytest
import torch

from cmikernels import class_infonce
from tests.cmikernels.test_infonce import rows, value_and_gradients


@pytest.mark.parametrize("temperature", [0.05, 0.03, 0.02])
def test_classes_that_are_far_apart_keep_their_digits(temperature: float) -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(4)
    queries, keys = (
        torch.eye(4, 8)[labels] + 0.02 * torch.randn(4, 8, generator=draws) for _ in range(2)
    )
    value, *gradients = value_and_gradients(queries, labels, keys, labels, temperature=temperature)
    leaves = [each.double().requires_grad_() for each in (queries, keys)]
    cosines = torch.nn.functional.normalize(leaves[0]) @ torch.nn.functional.normalize(leaves[1]).T
    differences = (cosines - cosines.diagonal()[:, None]) / temperature
    others = ~torch.eye(4, dtype=torch.bool)
    exact = (differences.exp() * others).sum(1).log1p().mean()
    assert exact < 1e-7, "the classes are near, so it proves nothing"
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    plain = class_infonce(queries, labels, keys, labels, temperature=temperature)
    assert plain.item() == pytest.approx(exact.item(), rel=1e-4)
    for found, by_hand in zip(gradients, torch.autograd.grad(exact, leaves), strict=True):
        assert (found - by_hand).norm() < 1e-4 * by_hand.norm()


@pytest.mark.parametrize("of_one_class", [True, False])
def test_second_derivatives_are_finite_where_a_query_has_no_negatives(of_one_class: bool) -> None:
    queries, labels, keys, _ = rows(3, 1, 4, of_keys=5)
    leaves = [each.requires_grad_() for each in (queries, keys)]
    key_labels = torch.zeros(5, dtype=torch.int64)
    key_labels[0] += not of_one_class
    value = class_infonce(leaves[0], labels, leaves[1], key_labels)
    first = torch.autograd.grad(value, leaves, create_graph=True)
    total = torch.stack([each.square().sum() for each in first]).sum()
    second = torch.autograd.grad(total, leaves)
    assert all(each.isfinite().all() for each in second)
    assert all(bool(each.any()) != of_one_class for each in second)
