"""What computes: one file or folder per backend behind one verb, and the choice between them.

A new backend is a module that offers what `operations.Backend` says and one entry in `_BACKENDS`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cmikernels.backends import cpu, cuda, plain, triton
from cmikernels.backends.operations import Backend

# In the order in which they are asked. The kernels of CUDA C++ stand before Triton's, because
# a call of them costs the host less.
_BACKENDS: dict[str, Backend] = {backend.NAME: backend for backend in (cpu, cuda, triton, plain)}

ENVIRONMENT_VARIABLE = "CMIKERNELS_BACKEND"


class BackendStatus(NamedTuple):
    """Whether a backend can run here, and how, or why not."""

    available: bool
    """Whether it can run here."""
    detail: str
    """How it will run, or why it cannot."""


def available_backends() -> dict[str, BackendStatus]:
    """Every backend by name, in order of preference: whether it can run, and how, or why not.

    Example:
        >>> available_backends()["reference"].available
        True
    """
    report = {}
    for name, backend in _BACKENDS.items():
        reason = backend.obstacle(backend.DEVICE_TYPE)
        report[name] = BackendStatus(reason is None, reason or backend.describe())
    return report


def choose_backend(name: str | None, device_type: str) -> Backend:
    """The backend asked for by name or environment, else the first that can serve the device."""
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
