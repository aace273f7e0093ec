"""Fused kernels for class-aware conditional mutual information (arXiv 2412.09945).

from cmikernels import fused_cmi

loss = task_loss + fused_cmi(features, labels, weight=2000.0)
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cmikernels.backends import BackendStatus, available_backends
from cmikernels.class_index import ClassIndex
from cmikernels.cmi import CMILoss, class_centroids, cmi_value_and_grad, fused_cmi
from cmikernels.infonce import class_infonce
from cmikernels.norm_act_pool import NormActPool, norm_act_pool
from cmikernels.regularizer import CMIRegularizer

if TYPE_CHECKING:
    from cmikernels.metrics import EmpiricalCMI, ncmi

__all__ = [
    "BackendStatus",
    "CMILoss",
    "CMIRegularizer",
    "ClassIndex",
    "EmpiricalCMI",
    "NormActPool",
    "available_backends",
    "class_centroids",
    "class_infonce",
    "cmi_value_and_grad",
    "fused_cmi",
    "ncmi",
    "norm_act_pool",
]

try:
    __version__ = version("cmikernels")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """The metrics, when they are asked for: they import torchmetrics where it is installed."""
    if name not in ("EmpiricalCMI", "ncmi"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cmikernels import metrics

    return getattr(metrics, name)
