"""Running a backend on a call, and the rules by which its answer is judged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmikernels import ClassIndex, fused_cmi
from tests.support.tables import DEVICE_OF, HALF


def value_and_gradient(
    backend: str,
    features: Tensor,
    classes: Tensor | ClassIndex | None = None,
    grad_value: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Value and gradient through autograd on the backend's device; both come back to the CPU."""
    device = DEVICE_OF[backend]
    z = features.detach().to(device).requires_grad_()
    if classes is not None:
        classes = classes.to(device)
    if options.get("centroids") is not None:
        options["centroids"] = options["centroids"].to(device)
    value = fused_cmi(z, classes, backend=backend, **options)
    grad_value = torch.ones_like(value) if grad_value is None else grad_value.to(value)
    (gradient,) = torch.autograd.grad(value, z, grad_value)
    return value.detach().cpu(), gradient.cpu()


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """2-norm of the difference over the 2-norm of what was expected; 0 where both are zero."""
    expected = expected.detach().cpu().double()
    difference = float((ours.detach().cpu().double() - expected).norm())
    scale = float(expected.norm())
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def assert_value(ours: Tensor, expected: Tensor, features_dtype: torch.dtype) -> None:
    """Within 1e-6 of float64, relative (norm of the vector where it is one); 1e-12 for float64."""
    wide = features_dtype == torch.float64
    assert ours.dtype == (torch.float64 if wide else torch.float32)
    assert ours.numel() == expected.numel()
    # float64 arithmetic on log-probabilities of size 10 is itself 1e-15 off, absolutely.
    difference = float((ours.detach().double().reshape(-1) - expected.reshape(-1)).norm())
    bound = (1e-12 if wide else 1e-6) * float(expected.norm()) + 1e-14
    assert difference <= bound, (
        f"off by {difference:.3e}, allowed {bound:.3e}, of {expected.norm()}"
    )


def assert_gradient(
    ours: Tensor,
    expected: Tensor,
    features_dtype: torch.dtype,
    torch_gradient: Tensor | None = None,
) -> None:
    """Within 1e-5 of float64, or as near to it as torch in the same dtype; plus one rounding."""
    assert ours.dtype == features_dtype
    expected = expected.reshape(ours.shape)
    allowed = (1e-12 if features_dtype == torch.float64 else 1e-5) * float(expected.norm())
    if torch_gradient is not None and features_dtype not in HALF:
        torch_difference = float((torch_gradient.double() - expected).norm())
        allowed = max(allowed, 1.05 * torch_difference)
    if features_dtype in HALF:
        allowed += 1.01 * float((expected.to(features_dtype).double() - expected).norm())
    # The oracle's own rounding, 1e-16 of log P, shows where the gradient is zero or nearly so.
    allowed += 1e-14
    difference = float((ours.detach().double() - expected).norm())
    message = f"off by {difference:.3e}, allowed {allowed:.3e}, of {expected.norm():.3e}"
    assert difference <= allowed, message
