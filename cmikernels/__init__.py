"""Fused kernels for class-aware conditional mutual information (arXiv 2412.09945).

from cmikernels import fused_cmi

loss = task_loss + fused_cmi(features, labels, weight=2000.0)
"""

from importlib.metadata import PackageNotFoundError, version

from cmikernels.backends import BackendStatus, available_backends
from cmikernels.class_index import ClassIndex
from cmikernels.cmi import CMILoss, class_centroids, cmi_value_and_grad, fused_cmi
from cmikernels.norm_act_pool import NormActPool, norm_act_pool
from cmikernels.regularizer import CMIRegularizer

__all__ = [
    "BackendStatus",
    "CMILoss",
    "CMIRegularizer",
    "ClassIndex",
    "NormActPool",
    "available_backends",
    "class_centroids",
    "cmi_value_and_grad",
    "fused_cmi",
    "norm_act_pool",
]

try:
    __version__ = version("cmikernels")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "unknown"
