"""Fixtures of the tests that need a GPU."""

from __future__ import annotations

import pytest
from torch import Tensor

from cmikernels import ClassIndex
from tests.support.gpu_calls import SHAPES, make_call
from tests.support.tables import DEVICE_OF, FUSED


@pytest.fixture(params=[name for name in FUSED if DEVICE_OF[name] == "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Of the fused backends those on the GPU."""
    name: str = request.param
    return name


@pytest.fixture(params=SHAPES)
def call(request: pytest.FixtureRequest, how: str) -> tuple[Tensor, ClassIndex | None]:
    """Features on the GPU, a leaf, and their classes: of equal sizes, or ragged and shuffled."""
    return make_call(SHAPES[request.param], how)
