"""More than 2^31 elements, where memory allows: no 32-bit offset survives it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, cmi_value_and_grad
from tests.compare import assert_gradient, assert_value
from tests.oracle import Oracle
from tests.tables import DEVICE_OF, FUSED, make_features, make_labels

ROWS_PER_CLASS, CHANNELS = 64, 2048
CLASSES = 2**31 // (ROWS_PER_CLASS * CHANNELS) + 32
NEEDED = 14 * 10**9


def available_memory() -> int:
    """Bytes that can be had without swapping; 0 where the system does not say."""
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def large_features() -> Tensor:
    """`(C, n, M)` bf16: one block again and again, but for the first and the last class."""
    if available_memory() < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of free memory, has {available_memory() >> 30}")
    features = torch.empty(CLASSES, ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16)
    assert features.numel() > 2**31
    features.copy_(make_features(ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16))
    features[0] = make_features(ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16, seed=1)
    features[-1] = make_features(ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16, seed=2)
    return features


@pytest.mark.slow
@pytest.mark.parametrize("how", ["grouped", "sorted index", "reversed index"])
@pytest.mark.parametrize("fused", FUSED)
def test_more_than_2_to_the_31_elements(large_features: Tensor, fused: str, how: str) -> None:
    features = large_features.to(DEVICE_OF[fused])
    options: dict[str, Any] = {"reduction": "class", "backend": fused}
    if how == "grouped":
        value, gradient = cmi_value_and_grad(features, **options)
    else:
        labels = make_labels([ROWS_PER_CLASS] * CLASSES)
        index = ClassIndex(labels if how == "sorted index" else CLASSES - 1 - labels)
        value, gradient = cmi_value_and_grad(
            features.view(-1, CHANNELS),
            index.to(features.device),
            **options,
        )
        value = value if how == "sorted index" else value.flip(0)
    gradient = gradient.view_as(features)
    first, middle, last = 0, CLASSES // 2, CLASSES - 1
    for y in (first, middle, last):
        oracle = Oracle(features[y], torch.zeros(ROWS_PER_CLASS, dtype=torch.int64))
        assert_value(value[y].cpu(), oracle.value, features.dtype)
        assert_gradient(gradient[y].cpu(), oracle.gradient(), features.dtype)
    assert torch.equal(gradient[1:last], gradient[1:2].expand(CLASSES - 2, -1, -1))
    assert (value[1:last] == value[1]).all()
