"""Characteristic functions of features, and their distance.

    p(t) = mean over images of exp(i t.u),    u = features / their length
    d(p, q) = mean over t of sqrt(a (|p| - |q|)^2 + b (|p - q|^2 - (|p| - |q|)^2))

What b multiplies is 2 (|p| |q| - Re p q*), the difference of phases, written so that it is exact
where p and q are near each other. With a = b the distance is sqrt(a) times the mean of |p - q|. All
derivatives of finite features are finite: those of a length below `LEAST`, and of a root below it,
are taken to be 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmidd.methods.class_draws import class_means

LEAST = 1e-12
"""What the difference of phases is at least, as published, and the length of a direction."""

_AT_ONCE = 1 << 19  # angles, which stay in a CPU's caches


def directions(features: Tensor) -> Tensor:
    """Rows of `features` `(N, M)` made to length 1; those shorter than `LEAST` to 0."""
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    inverse: Tensor = lengths.where(lengths > LEAST, torch.inf).reciprocal()
    return features * inverse


def characteristic_functions(rows: Tensor, counts: list[int], frequencies: Tensor) -> Tensor:
    """Of each class at T frequencies: real and imaginary parts `(C, T, 2)`.

    Args:
        rows: `(N, M)`, class by class.
        counts: rows of each class.
        frequencies: `(T, M)`.
    """
    found = []
    for some in torch.split(frequencies, max(1, _AT_ONCE // len(rows))):
        angles = rows @ some.T
        parts = [class_means(part, counts) for part in (angles.cos(), angles.sin())]
        found.append(torch.stack(parts, dim=2))
    return torch.cat(found, dim=1)


def distances(p: Tensor, q: Tensor, amplitude_weight: float, phase_weight: float) -> Tensor:
    """Of functions `(C, T, 2)`, for each class."""
    of_lengths = torch.linalg.vector_norm(p, dim=2) - torch.linalg.vector_norm(q, dim=2)
    amplitudes = of_lengths.square()
    phases = (p - q).square().sum(dim=2) - amplitudes
    squares = amplitude_weight * amplitudes + phase_weight * phases.clamp(min=LEAST)
    roots: Tensor = squares.clamp(min=LEAST**2).sqrt()
    return roots.mean(dim=1)
