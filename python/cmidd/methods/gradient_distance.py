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
        device = taken[0].device
        self.lengths = torch.tensor(lengths, device=device)  # (R,)
        if not by_row:
            self.lengths = self.lengths.sum()[None]
        # With the size, which a GPU else has to wait for.
        self.row_of = torch.repeat_interleave(self.lengths, output_size=sum(lengths))  # (P,)

    def __call__(self, synthetic: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over classes, and its derivative by `synthetic`; both gradients are `(C, P)`."""
        if self.metric == "mse":
            difference = synthetic - real
            return difference.square().sum(), 2 * difference
        if self.metric == "l1":
            difference = synthetic - real
            return difference.abs().sum(), difference.sign()
        inner = self._sums(synthetic * real)  # (C, R)
        norm, norm_real = self._sums(synthetic.square()).sqrt(), self._sums(real.square()).sqrt()
        q = norm * norm_real + EPS
        alive = norm > 0
        along = torch.where(alive, inner * norm_real / (norm * q.square()), 0)
        derivative = self._spread(along) * synthetic - self._spread(alive / q) * real
        return (1 - inner / q).sum(), derivative

    def _sums(self, products: Tensor) -> Tensor:
        """`(C, R)` over the rows of `(C, P)`."""
        if len(self.lengths) == 1:
            return products.sum(dim=1, keepdim=True)
        lengths = self.lengths.expand(len(products), -1).contiguous()
        # unsafe: the check of lengths, which are right, would make a GPU wait.
        return torch.segment_reduce(products, "sum", lengths=lengths, axis=1, unsafe=True)

    def _spread(self, values: Tensor) -> Tensor:
        """`(C, P)`: each row's value `(C, R)` at all its places."""
        return values.gather(1, self.row_of.expand(len(values), -1))
