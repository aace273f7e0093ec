"""What is known of classes after some of their rows, in O(C M): one tensor that merges exactly.

A class of n rows P_s has n, its centroid Q = mean P_s and S = sum_s KL(P_s || Q). KL to the mean is
a Bregman divergence, so two parts of a class merge without a difference of large numbers:

    n = n1 + n2,  Q = (n1 Q1 + n2 Q2) / n,  S = S1 + S2 + n1 KL(Q1 || Q) + n2 KL(Q2 || Q)

NCMI needs the sums of log P_s beside them. Everything is float64, a row a class:

    n | S | Q (M numbers) | sum log P (M numbers, or none)
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.backends import choose_backend, operations
from cmikernels.class_index import ClassIndex
from cmikernels.problem import Problem, as_rows
from cmikernels.reference import log_probabilities

_HEAD = 2  # n and S
_SMALL = 0.03  # below it the difference of x and log(1 + x) is a series
_LARGE = 1e300  # a ratio beyond it has a P that is next to nothing
_AT_ONCE = 1 << 22  # numbers whose logarithms are in memory together
FEW = 32
"""Rows a class, on average, below which the means of float32 kernels are too rough: rounded to 6e-8
of themselves, they move the KL between parts whose centroids are 1e-4 apart."""


def statistics_of(
    features: Tensor,
    index: ClassIndex,
    temperature: float,
    backend: str | None,
    with_logs: bool,
) -> Tensor:
    """Those of a batch `(N, M)`: `(C, 2 + M)`, or `(C, 2 + 2 M)` with sums of logarithms."""
    rows, num_classes = features.shape[0], index.num_classes
    if rows < FEW * num_classes:
        features = features.double()
    problem = Problem(index, rows, num_classes, None, temperature, 1.0, "class")
    chosen = choose_backend(backend, features.device.type)
    value = operations.empty_value(features, problem)
    means = operations.empty_means(features, problem)
    chosen.fill(features, problem, value=value, means=means)
    counts = index.counts().double()
    parts = [counts[:, None], (value.double() * counts)[:, None], means.double()]
    if with_logs:
        parts.append(class_sums_of_logs(features, index.labels, num_classes, temperature))
    return torch.cat(parts, dim=1)


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


def empty(num_classes: int, channels: int, with_logs: bool) -> Tensor:
    """No rows yet."""
    return torch.zeros(num_classes, _HEAD + channels * (2 if with_logs else 1), dtype=torch.float64)


def counts(statistics: Tensor) -> Tensor:
    """Rows of each class, `(C,)`."""
    return statistics[:, 0]


def divergences(statistics: Tensor) -> Tensor:
    """Sum of KL to the centroid, of each class, `(C,)`."""
    return statistics[:, 1]


def centroids(statistics: Tensor, channels: int) -> Tensor:
    """`(C, M)`; zeros for a class without rows."""
    return statistics[:, _HEAD : _HEAD + channels]


def merged(parts: Tensor, channels: int) -> Tensor:
    """Of the rows of all parts, `(parts, C, ...)`, in one."""
    out = parts.sum(dim=0)
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
    logs = torch.log1p(x.clamp_max(_LARGE))
    terms = torch.where(small, p * y * y * series, difference - p * logs)
    return torch.where(p > 0, terms, difference).sum(dim=-1)


def separation(statistics: Tensor, channels: int, conditional: bool) -> Tensor:
    """Gamma: the mean cross-entropy of pairs of rows of different classes, 0 where there are none.

    The mean is over all pairs, or with `conditional` over those of different classes.
    """
    n = counts(statistics)
    sums = n[:, None] * centroids(statistics, channels)
    return cross_entropy_between(sums, statistics[:, _HEAD + channels :], n, conditional)


def cross_entropy_between(sums: Tensor, logs: Tensor, n: Tensor, conditional: bool) -> Tensor:
    """A mean of -P_s log P_t over rows s, t of two classes, by sums of P and log P `(C, M)`."""
    others = logs.sum(dim=0) - logs
    total = n.sum()
    pairs = total.square() - n.square().sum() if conditional else total.square()
    return -(sums * others).sum() / pairs.clamp_min(1)
