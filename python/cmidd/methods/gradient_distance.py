"""The distance of two gradients of a network, and its derivative in closed form.

    rows    sum over rows of 1 - <s, r> / (|s| |r| + 1e-6)      of weights (out, ...), row by row
    cosine  1 - <s, r> / (|s| |r| + 1e-6)                       of all parameters as one row
    mse     |s - r|^2                                           of all parameters
    l1      sum of |s - r| over all numbers                     of all parameters

With q = |s| |r| + 1e-6 the derivative of a row is <s, r> |r| / (|s| q^2) s - r / q. Where s is zero
it is set to zero: a filter that is dead for all images of a class has nothing to follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import Tensor

from cmidd.options.idc import METRICS

EPS = 1e-6


class GradientDistance:
    """The distance by `metric` of gradients whose parameters have these names and shapes.

    `names` are the parameters that take part; `rows` passes over vectors: biases and scales, shifts
    of norms. The gradients of a class are those, flattened and joined in that order.
    """

    def __init__(self, metric: str, parameters: Mapping[str, Tensor]) -> None:
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
        self.metric = metric
        by_row = metric == "rows"
        self.names = [n for n, p in parameters.items() if not by_row or p.ndim in (2, 4)]
        taken = [parameters[name] for name in self.names]
        lengths = [p[0].numel() for p in taken for _ in range(len(p))]
        rows = groupby(lengths if by_row else [sum(lengths)])
        self.blocks = [(len([*equal]), length) for length, equal in rows]
        """Rows beside each other that are equally long: how many, and how long."""

    def __call__(self, synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over classes, and its derivative by `synthetic`; both gradients are `(C, P)`."""
        if self.metric == "mse":
            difference = synthetic - real
            return difference.square().sum(), 2 * difference
        if self.metric == "l1":
            difference = synthetic - real
            return difference.abs().sum(), difference.sign()
        inner = self._of_rows(synthetic * real)  # (C, R)
        # Not vector_norm, which on a CPU adds up a row in turn: at 11 million numbers 4e-4 off.
        norm, norm_real = (self._of_rows(each.square()).sqrt() for each in (synthetic, real))
        q = norm * norm_real + EPS
        alive = norm > 0
        along, across = torch.where(alive, inner * norm_real / (norm * q.square()), 0), alive / q
        derivative, first = torch.empty_like(synthetic), 0
        for out, s, r in zip(*map(self._split, (derivative, synthetic, real)), strict=True):
            rows = slice(first, first + out.shape[1])
            torch.mul(along[:, rows, None], s, out=out).addcmul_(across[:, rows, None], r, value=-1)
            first = rows.stop
        return (1 - inner / q).sum(), derivative

    def _split(self, numbers: Tensor) -> list[Tensor]:
        """Views `(C, rows, length)` of `(C, P)`, one of each block."""
        parts = torch.split(numbers, [rows * length for rows, length in self.blocks], dim=1)
        return [part.view(-1, *block) for part, block in zip(parts, self.blocks, strict=True)]

    def _of_rows(self, numbers: Tensor) -> Tensor:
        """`(C, R)` of `(C, P)`: the sum of each row."""
        return torch.cat([block.sum(dim=2) for block in self._split(numbers)], dim=1)
