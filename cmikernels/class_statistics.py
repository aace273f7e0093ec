"""What is known of classes after some of their rows, in O(C M): one tensor that merges exactly.

A class of n rows P_s has n, its centroid Q = mean P_s and S = sum_s KL(P_s || Q). KL to the mean is
a Bregman divergence, so two parts of a class merge without a difference of large numbers:

    n = n1 + n2,  Q = (n1 Q1 + n2 Q2) / n,  S = S1 + S2 + n1 KL(Q1 || Q) + n2 KL(Q2 || Q)

NCMI needs the sums of log P_s beside them. Everything is float64, a row a class:

    n | S | tau | M | Q (M numbers) | sum log P (M numbers, or none)

tau and M are there so that what was measured otherwise is not taken for the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.backends import choose_backend, operations
from cmikernels.class_index import ClassIndex
from cmikernels.problem import Problem, as_rows
from cmikernels.reference import log_probabilities

_HEAD = 4  # n, S, tau, M
_MEASURED = slice(2, _HEAD)
_SMALL = 0.03  # below it the difference of x and log(1 + x) is a series
_RATIOS = -1 + 2.0**-53, 1e300  # of what is next to nothing to a normal number, and back
_AT_ONCE = 1 << 22  # numbers whose logarithms are in memory together
FEW = 64
"""Rows of a class below which the means of float32 kernels are too rough: rounded to 6e-8 of
themselves, they move the KL between parts whose centroids are 1e-4 apart."""


def statistics_of(
    features: Tensor,
    index: ClassIndex,
    temperature: float,
    backend: str | None,
    with_logs: bool,
) -> Tensor:
    """Those of a batch `(N, M)`."""
    (rows, channels), num_classes = features.shape, index.num_classes
    counts = index.counts()
    if ((counts > 0) & (counts < FEW)).any():
        features = features.double()
    problem = Problem(index, rows, num_classes, None, temperature, 1.0, "class")
    chosen = choose_backend(backend, features.device.type)
    value = operations.empty_value(features, problem)
    means = operations.empty_means(features, problem)
    chosen.fill(features, problem, value=value, means=means)
    out = empty(num_classes, channels, temperature, with_logs, features.device)
    out[:, 0] = counts
    out[:, 1] = value * out[:, 0]
    centroids(out, channels).copy_(means)
    if with_logs:
        sums_of_logs(out, channels).copy_(
            class_sums_of_logs(features, index.labels, num_classes, temperature)
        )
    return out


def class_sums_of_logs(
    features: Tensor, labels: Tensor, num_classes: int, temperature: float
) -> Tensor:
    """Sums of log P over the rows of each class, `(C, M)` in float64, some rows at a time."""
    rows = as_rows(features)
    sums = rows.new_zeros(num_classes, rows.shape[1], dtype=torch.float64)
    at_once = max(_AT_ONCE // rows.shape[1], 1)
    for some, of in zip(torch.split(rows, at_once), torch.split(labels, at_once), strict=True):
        sums.index_add_(0, of, log_probabilities(some, temperature))
    return sums


def empty(
    num_classes: int,
    channels: int,
    temperature: float,
    with_logs: bool,
    device: torch.device | None = None,
) -> Tensor:
    """No rows yet."""
    width = _HEAD + channels * (2 if with_logs else 1)
    out = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
    out[:, 2], out[:, 3] = temperature, channels
    return out


def measured_alike(first: Tensor, second: Tensor) -> bool:
    """Whether both have the same classes, channels and temperature, and logarithms or none."""
    return first.shape == second.shape and torch.equal(first[:, _MEASURED], second[:, _MEASURED])


def counts(statistics: Tensor) -> Tensor:
    """Rows of each class, `(C,)`."""
    return statistics[:, 0]


def divergences(statistics: Tensor) -> Tensor:
    """Sum of KL to the centroid, of each class, `(C,)`."""
    return statistics[:, 1]


def centroids(statistics: Tensor, channels: int) -> Tensor:
    """`(C, M)`; zeros for a class without rows."""
    return statistics[:, _HEAD : _HEAD + channels]


def sums_of_logs(statistics: Tensor, channels: int) -> Tensor:
    """`(C, M)`, where there are such."""
    return statistics[:, _HEAD + channels :]


def merged(parts: Tensor, channels: int) -> Tensor:
    """Of the rows of all parts, `(parts, C, ...)`, in one."""
    out = parts.sum(dim=0)
    out[:, _MEASURED] = parts[0, :, _MEASURED]
    n = parts[..., :1]
    q = parts[..., _HEAD : _HEAD + channels]
    beyond_first = q - q[0]
    step = (beyond_first * (n / out[:, :1].clamp_min(1))).sum(dim=0)
    out[:, _HEAD : _HEAD + channels] = q[0] + step
    out[:, 1] += (n[..., 0] * _divergence(q, step - beyond_first)).sum(dim=0)
    return out


def _divergence(p: Tensor, difference: Tensor) -> Tensor:
    """KL of rows p to rows q, by q - p, which is known better than from p and q.

    sum P log(P / Q) = sum P (x - log(1 + x)) with x = (Q - P) / P, because both sum to the same.
    """
    x = difference / p
    small = x.abs() < _SMALL
    y = torch.where(small, x, 0)
    series = torch.full_like(y, 1 / 11)
    for k in range(10, 1, -1):
        series = torch.addcmul(series.new_full((), 1 / k), y, series, value=-1)
    logs = torch.log1p(x.clamp(*_RATIOS))
    terms = torch.where(small, p * y * y * series, difference - p * logs)
    return torch.where(p > 0, terms, difference).sum(dim=-1)


def separation(statistics: Tensor, channels: int, conditional: bool) -> Tensor:
    """Gamma: the mean cross-entropy of pairs of rows, 0 for those of one class.

    The mean is over all pairs, or with `conditional` over those of different classes.
    """
    n = counts(statistics)
    sums = n[:, None] * centroids(statistics, channels)
    return cross_entropy_between(sums, sums_of_logs(statistics, channels), n, conditional)


def cross_entropy_between(sums: Tensor, logs: Tensor, n: Tensor, conditional: bool) -> Tensor:
    """A mean of -P_s log P_t over rows s, t of two classes, by sums of P and log P `(C, M)`."""
    others = logs.sum(dim=0) - logs
    total = n.sum()
    pairs = total.square() - n.square().sum() if conditional else total.square()
    return -(sums * others).sum() / pairs.clamp_min(1)
