"""NCMI against its definition, pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, fused_cmi, ncmi


def brute_force(features: Tensor, labels: Tensor, pairs: str, temperature: float = 1.0) -> Tensor:
    log_p = torch.log_softmax(features / temperature, dim=1)
    cross = -log_p.exp() @ log_p.T
    apart = labels[:, None] != labels
    over = apart if pairs == "different" else torch.ones_like(apart)
    gamma = (cross * apart).sum() / over.sum()
    return fused_cmi(features, labels, temperature=temperature, backend="reference") / gamma


@pytest.mark.parametrize("pairs", ["all", "different"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_it_is_the_definition(pairs: str, temperature: float) -> None:
    torch.manual_seed(0)
    features = 3 * torch.randn(40, 12, dtype=torch.float64)
    labels = torch.randint(4, (40,))
    found = ncmi(features, labels, num_classes=6, pairs=pairs, temperature=temperature)
    expected = brute_force(features, labels, pairs, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    doubled = ncmi(features, ClassIndex(labels), pairs=pairs, temperature=temperature, weight=2.0)
    torch.testing.assert_close(doubled, 2 * expected, rtol=1e-13, atol=0)


def test_equal_classes_need_no_labels() -> None:
    features = torch.randn(3, 5, 7, dtype=torch.float64)
    labels = torch.arange(3).repeat_interleave(5)
    torch.testing.assert_close(ncmi(features), ncmi(features.flatten(0, 1), labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_of_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(60, 32).to(dtype), torch.randint(5, (60,))
    expected = brute_force(features.double(), labels, "all")
    found = ncmi(features.requires_grad_(), labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    found.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert features.grad.dtype == dtype


@pytest.mark.parametrize("pairs", ["all", "different"])
def test_first_and_second_derivatives(pairs: str) -> None:
    torch.manual_seed(0)
    features = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    index = ClassIndex(torch.tensor([0, 2, 1, 0, 2, 2, 1]))

    def function(z: Tensor) -> Tensor:
        return ncmi(z, index, pairs=pairs, weight=3.0)

    assert torch.autograd.gradcheck(function, features)
    assert torch.autograd.gradgradcheck(function, features)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)),
        (torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])),
        (torch.tensor([[3e38, -3e38], [-3e38, 3e38], [0.0, 3e38]]), torch.tensor([0, 0, 1])),
        (torch.eye(4) * 1e30, torch.arange(4)),
        (
            torch.tensor([[0.0, -1.5e308], [0.0, -1.5e308], [1.0, 0.0]], dtype=torch.float64),
            torch.tensor([0, 0, 1]),
        ),
    ],
    ids=["one class", "no rows", "equal rows", "huge", "each a class, huge", "huge in float64"],
)
def test_it_is_finite_where_features_are(features: Tensor, labels: Tensor) -> None:
    features = features.clone().requires_grad_()
    value = ncmi(features, labels, num_classes=5)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="pairs: expected all or different, got 'some'"):
        ncmi(torch.randn(2, 3, 4), pairs="some")
    with pytest.raises(ValueError, match="one network"):
        ncmi(torch.randn(2, 2, 3, 4))
    with pytest.raises(TypeError, match="features"):
        ncmi(torch.ones(3, 4, dtype=torch.int64), torch.arange(3))
