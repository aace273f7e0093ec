"""The formula of CMI, class by class in float64, sharing no code with the library.

P_s = softmax(z_s / tau),  Q_y = mean of P_s over class y, or given
KL_s = sum_j P_sj (log P_sj - log Q_yj)
dL/dz_sj = P_sj [w_s (d_sj - KL_s) - (rho_yj - sum_i P_si rho_yi)] / tau,  d = log P - log Q,
rho_yj = (1/n_y) sum_{t in y} w_t P_tj / Q_yj, and 0 for a given centroid
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALLEST_NORMAL = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}


class Oracle:
    """Value and gradient of one call in float64; `features` is `(N, M)`."""

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        num_classes: int | None = None,
        centroids: Tensor | None = None,
        temperature: float = 1.0,
        weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        z = features.detach().cpu().double()
        self.labels = labels.cpu().long()
        self.temperature, self.weight, self.reduction = temperature, weight, reduction
        self.own = centroids is None
        highest = int(self.labels.max()) + 1 if len(z) else 0
        self.num_classes = highest if num_classes is None else num_classes
        z = (z - z.amax(1, keepdim=True)) / temperature
        self.log_p = z - z.logsumexp(1, keepdim=True)
        self.p = self.log_p.exp()
        self.log_q = torch.full((self.num_classes, z.shape[1]), -torch.inf, dtype=torch.float64)
        for y in range(self.num_classes):
            rows = self.log_p[self.labels == y]
            if centroids is not None:
                smallest = torch.float64 if features.dtype == torch.float64 else torch.float32
                given = centroids[y].cpu().double()
                self.log_q[y] = given.clamp_min(SMALLEST_NORMAL[smallest]).log()
            elif len(rows):
                self.log_q[y] = rows.logsumexp(0) - math.log(len(rows))
        # Where P is 0 so is its term, whatever the logarithms: 0 log 0 = 0.
        d = self.log_p - self.log_q[self.labels]
        self.d = torch.where(self.p == 0, torch.zeros_like(d), d)
        self.row_kl = (self.p * self.d).sum(1)

    def class_sums(self, row_values: Tensor) -> Tensor:
        """Sum over each class of per-row numbers, `(C,)`."""
        sums = [row_values[self.labels == y].sum() for y in range(self.num_classes)]
        return torch.stack(sums) if sums else row_values.new_zeros(0)

    @property
    def counts(self) -> Tensor:
        """Rows of each class, at least 1, `(C,)`."""
        return self.class_sums(torch.ones_like(self.row_kl)).clamp_min(1)

    @property
    def value(self) -> Tensor:
        """The weighted, reduced value in float64."""
        if self.reduction == "none":
            return self.row_kl * self.weight
        if self.reduction == "class":
            return self.class_sums(self.row_kl) / self.counts * self.weight
        total = self.row_kl.sum() * self.weight
        return total / max(len(self.row_kl), 1) if self.reduction == "mean" else total

    def gradient(self, grad_value: Tensor | None = None) -> Tensor:
        """d<grad_value, value>/d features in float64; grad_value None means ones."""
        w = self.row_weights(torch.ones_like(self.value) if grad_value is None else grad_value)
        w = w[:, None]
        score = w * (self.d - self.row_kl[:, None])
        if self.own:
            ratio = torch.where(self.p == 0, torch.zeros_like(self.d), self.d.exp())
            for y in range(self.num_classes):
                rows = self.labels == y
                if rows.any():
                    rho = (w[rows] * ratio[rows]).mean(0)
                    score[rows] -= rho - (self.p[rows] * rho).sum(1, keepdim=True)
        return self.p * score / self.temperature

    def row_weights(self, grad_value: Tensor) -> Tensor:
        """dL/dKL of every row, `(N,)`."""
        g = grad_value.detach().cpu().double()
        if self.reduction == "none":
            return g.reshape(-1) * self.weight
        if self.reduction == "class":
            return (g.reshape(-1) / self.counts)[self.labels] * self.weight
        g = g.expand(len(self.row_kl)) * self.weight
        return g / max(len(self.row_kl), 1) if self.reduction == "mean" else g


def torch_gradient(features: Tensor, labels: Tensor, *, published: bool = False) -> Tensor:
    """Gradient of the mean by torch autograd in the features' own dtype: the error to be held to.

    In log space; `published` takes the logarithms of probabilities, as the paper's code does, and
    is NaN once a channel underflows in a whole class.
    """
    z = features.detach().clone().requires_grad_()
    log_p = z.softmax(1).log() if published else z.log_softmax(1)
    terms = []
    for y in sorted(set(labels.tolist())):
        rows = log_p[labels == y]
        log_q = rows.logsumexp(0) - math.log(len(rows))
        if published:
            log_q = rows.exp().mean(0).log()
        terms.append((rows.exp() * (rows - log_q)).sum())
    value = torch.stack(terms).sum() / max(len(z), 1)
    (gradient,) = torch.autograd.grad(value, z)
    return gradient
