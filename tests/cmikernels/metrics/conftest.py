from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest

from cmikernels import metrics


def without_torchmetrics() -> ModuleType:
    """`cmikernels.metrics` as it is where torchmetrics is not installed."""
    spec = importlib.util.find_spec("cmikernels.metrics")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchmetrics", None)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["torchmetrics", "alone"])
def empirical_cmi(request: pytest.FixtureRequest) -> Any:
    """The class, with and without torchmetrics."""
    if request.param == "alone":
        return without_torchmetrics().EmpiricalCMI
    pytest.importorskip("torchmetrics")
    return metrics.EmpiricalCMI
