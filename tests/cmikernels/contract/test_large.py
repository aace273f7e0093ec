"""More than 2^31 elements, where memory allows: no 32-bit offset survives it."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from cmikernels import ClassIndex, cmi_value_and_grad
from tests.support.compare import assert_gradient, assert_value
from tests.support.oracle import Oracle
from tests.support.tables import DEVICE_OF, FUSED, INTERPRETED, make_features, make_labels

ROWS_PER_CLASS, CHANNELS = 64, 2048
CLASSES = 2**31 // (ROWS_PER_CLASS * CHANNELS) + 32
NEEDED = 14 * 10**9


def available_memory(device: str) -> int:
    """Bytes that can be had without swapping; 0 where the system does not say."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module", params=[name for name in FUSED if name not in INTERPRETED])
def fused(request: pytest.FixtureRequest) -> str:
    """The fused backends but those that would take hours."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def large_features(fused: str) -> Tensor:
    """`(C, n, M)` bf16: one block again and again, but for the first and the last class."""
    device = DEVICE_OF[fused]
    available = available_memory(device)
    if available < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of free {device} memory, has {available >> 30}")
    shape = (CLASSES, ROWS_PER_CLASS, CHANNELS)
    features = torch.empty(shape, dtype=torch.bfloat16, device=device)
    assert features.numel() > 2**31
    features.copy_(make_features(ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16))
    features[0] = make_features(ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16, seed=1)
    features[-1] = make_features(ROWS_PER_CLASS, CHANNELS, dtype=torch.bfloat16, seed=2)
    return features


@pytest.mark.slow
@pytest.mark.parametrize("how", ["grouped", "sorted index", "reversed index"])
def test_more_than_2_to_the_31_elements(large_features: Tensor, fused: str, how: str) -> None:
    options: dict[str, Any] = {"reduction": "class", "backend": fused}
    if how == "grouped":
        value, gradient = cmi_value_and_grad(large_features, **options)
    else:
        labels = make_labels([ROWS_PER_CLASS] * CLASSES)
        index = ClassIndex(labels if how == "sorted index" else CLASSES - 1 - labels)
        value, gradient = cmi_value_and_grad(
            large_features.view(-1, CHANNELS),
            index.to(large_features.device),
            **options,
        )
        value = value if how == "sorted index" else value.flip(0)
    gradient = gradient.view_as(large_features)
    first, middle, last = 0, CLASSES // 2, CLASSES - 1
    for y in (first, middle, last):
        oracle = Oracle(large_features[y], torch.zeros(ROWS_PER_CLASS, dtype=torch.int64))
        assert_value(value[y].cpu(), oracle.value, gradient.dtype)
        assert_gradient(gradient[y].cpu(), oracle.gradient(), gradient.dtype)
    assert torch.equal(gradient[1:last], gradient[1:2].expand(CLASSES - 2, -1, -1))
    assert (value[1:last] == value[1]).all()
