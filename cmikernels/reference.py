"""The formula in plain torch, in float64: oracle, fallback and double backward.

    P_s = softmax(z_s / tau),  Q_y = mean of P_s over class y (or given),
    KL_s = sum_j P_sj (log P_sj - log Q_yj)

Everything is kept in log space, so that a channel that underflows in a whole class is as harmless
here as it is in exact arithmetic. Differentiable any number of times, through the centroid too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cmikernels.problem import Problem, as_rows

# Stands for log 0: far below any log-probability of finite features, and its square is finite.
_LOG_ZERO = {torch.float64: -1e100, torch.float32: -1e18}


def oracle_dtype(device: torch.device) -> torch.dtype:
    """float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def log_probabilities(features: Tensor, temperature: float) -> Tensor:
    """log softmax(features / temperature) per row, `(N, M)`, so large that sums are finite."""
    z = features.to(oracle_dtype(features.device))
    z = (z - z.detach().amax(dim=1, keepdim=True)) / temperature
    return torch.log_softmax(z, dim=1).clamp_min(_LOG_ZERO[z.dtype])


def log_centroids(log_p: Tensor, problem: Problem) -> Tensor:
    """log of each class's mean probability, `(C, M)`; a class without rows gets log 0."""
    channels = log_p.shape[1]
    low = _LOG_ZERO[log_p.dtype]
    if problem.classes is None:
        rows = problem.rows_per_class
        if rows == 0:
            return log_p.new_full((problem.num_classes, channels), low)
        grouped = log_p.view(problem.num_classes, rows, channels)
        top = grouped.detach().amax(dim=1, keepdim=True)
        return ((grouped - top).exp().mean(dim=1)).log() + top.squeeze(1)
    labels = problem.classes.labels
    index = labels[:, None].expand(-1, channels)
    top = log_p.new_full((problem.num_classes, channels), low)
    top = top.scatter_reduce(0, index, log_p.detach(), "amax")
    shifted = (log_p - top[labels]).exp()
    sums = log_p.new_zeros(problem.num_classes, channels).index_add(0, labels, shifted)
    counts = problem.classes.counts()[:, None]
    empty = counts == 0
    return (sums.masked_fill(empty, 1) / counts.clamp_min(1)).log() + top


def row_log_centroids(log_p: Tensor, problem: Problem) -> Tensor:
    """log Q of every row's class, `(N, M)`."""
    if problem.centroids is None:
        log_q = log_centroids(log_p, problem)
    else:
        tiny = torch.finfo(problem.centroids.dtype).tiny
        log_q = problem.centroids.to(log_p.dtype).clamp_min(tiny).log()
    if problem.classes is None:
        return log_q.repeat_interleave(problem.rows_per_class, dim=0)
    return log_q[problem.classes.labels]


def row_divergences(features: Tensor, problem: Problem) -> Tensor:
    """KL of every row to its class's centroid, `(N,)` in float64."""
    log_p = log_probabilities(features, problem.temperature)
    return (log_p.exp() * (log_p - row_log_centroids(log_p, problem))).sum(dim=1)


def closed_form_gradient(features: Tensor, problem: Problem, row_weights: Tensor) -> Tensor:
    """d(sum_s w_s KL_s)/dz, `(N, M)` in float64, without autograd.

    rho_yj = (1/n_y) sum_{t in y} (w_t - mean w) P_tj / Q_yj        0 for a given centroid
    dL/dz_sj = P_sj [w_s (d_sj - KL_s) - (rho_yj - sum_i P_si rho_yi)] / tau
    """
    log_p = log_probabilities(features, problem.temperature)
    p = log_p.exp()
    log_q = row_log_centroids(log_p, problem)
    d = log_p - log_q
    w = row_weights.to(p.dtype)[:, None]
    score = w * (d - (p * d).sum(dim=1, keepdim=True))
    if problem.centroids is None:
        ratio = (log_p - log_q).exp()  # P / Q, at most n
        rho = class_mean((w - class_mean(w, problem)) * ratio, problem)
        score = score - (rho - (p * rho).sum(dim=1, keepdim=True))
    return p * score / problem.temperature


def class_mean(rows: Tensor, problem: Problem) -> Tensor:
    """Every row replaced by the mean over its class; same shape."""
    if problem.classes is None:
        grouped = rows.view(problem.num_classes, problem.rows_per_class, rows.shape[1])
        return grouped.mean(dim=1, keepdim=True).expand_as(grouped).reshape(rows.shape)
    labels = problem.classes.labels
    sums = rows.new_zeros(problem.num_classes, rows.shape[1]).index_add(0, labels, rows)
    return (sums / problem.classes.counts().clamp_min(1)[:, None])[labels]


def reduce_rows(row_kl: Tensor, problem: Problem) -> Tensor:
    """Apply weight and reduction to the rows' divergences."""
    if problem.reduction == "none":
        return row_kl * problem.weight
    if problem.reduction != "class":
        return row_kl.sum() * problem.row_scale
    if problem.classes is None:
        return row_kl.view(problem.num_classes, problem.rows_per_class).sum(1) * problem.row_scale
    sums = row_kl.new_zeros(problem.num_classes).index_add(0, problem.classes.labels, row_kl)
    return sums * problem.weight / problem.classes.counts().clamp_min(1)


def reference_cmi(features: Tensor, problem: Problem) -> Tensor:
    """The reduced, weighted value in float64, differentiable any number of times."""
    with torch.autocast(features.device.type, enabled=False):
        return reduce_rows(row_divergences(features, problem), problem)


def reference_centroids(features: Tensor, problem: Problem) -> Tensor:
    """Mean probabilities of each class, `(C, M)` in float64, differentiable."""
    log_p = log_probabilities(as_rows(features), problem.temperature)
    return log_centroids(log_p, problem).exp()


def differentiable_gradient(features: Tensor, problem: Problem, grad_value: Tensor) -> Tensor:
    """d<grad_value, value>/d features with a graph of its own, through the plain formula."""
    with torch.enable_grad():
        value = reference_cmi(as_rows(features), problem)
        (gradient,) = torch.autograd.grad(
            value, features, grad_value.to(value.dtype), create_graph=True
        )
    return gradient
