"""What computes: one small file per backend behind one interface, and the choice between them.

A backend is one file here and one entry in `_BACKENDS`, fastest first.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from torch import Tensor

from cmikernels.backends import cpu, cuda, plain, triton
from cmikernels.problem import Problem


class Backend(Protocol):
    """What a backend module offers.

    `features` is `(N, M)`, or `(..., C, n, M)` where the problem has no ClassIndex, of any strides,
    and only read. Gradients come back in its shape and dtype, contiguous.
    """

    NAME: str
    DEVICE_TYPE: str  # where it computes

    def obstacle(self, device_type: str) -> str | None:
        """Why this backend cannot serve tensors of that device type; None when it can."""

    def describe(self) -> str:
        """How it will run here, in a few words."""

    def forward(
        self, features: Tensor, problem: Problem, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Reduced value, flat, and the gradient of its sum where asked for and cheap."""

    def scale(
        self, gradient: Tensor, features: Tensor, problem: Problem, grad_value: Tensor
    ) -> Tensor:
        """Turn forward's gradient, to be used up, into d<grad_value, value>/d features."""

    def backward(self, features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
        """d<grad_value, value>/d features from scratch."""

    def centroids(self, features: Tensor, problem: Problem) -> Tensor:
        """Mean probabilities of each class, `(C, M)`; zeros for a class without rows."""


# Triton's kernels before those of CUDA C++ until a GPU has shown which are the faster.
_BACKENDS: dict[str, Backend] = {backend.NAME: backend for backend in (cpu, triton, cuda, plain)}

ENVIRONMENT_VARIABLE = "CMIKERNELS_BACKEND"


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and how, or why not."""

    available: bool
    detail: str


def available_backends() -> dict[str, BackendStatus]:
    """Every backend by name, fastest first: whether it can run here, and how, or why not."""
    report = {}
    for name, backend in _BACKENDS.items():
        reason = backend.obstacle(backend.DEVICE_TYPE)
        report[name] = BackendStatus(reason is None, reason or backend.describe())
    return report


def choose_backend(name: str | None, device_type: str) -> Backend:
    """The backend asked for by name or environment, else the fastest that can serve the device."""
    source = "backend"
    if name is None:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or None
        source = ENVIRONMENT_VARIABLE
    if name is None:
        for backend in _BACKENDS.values():
            # The plain formula serves any device, an interpreter only who asks for it.
            meant = backend is plain or device_type == backend.DEVICE_TYPE
            if meant and backend.obstacle(device_type) is None:
                return backend
    if name not in _BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(_BACKENDS)}, got {name!r}")
    reason = _BACKENDS[name].obstacle(device_type)
    if reason is not None:
        raise ValueError(
            f"{source}: {name!r} cannot run on a tensor of device {device_type}: {reason}"
        )
    return _BACKENDS[name]
