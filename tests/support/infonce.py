"""Class-positive InfoNCE by a double loop, sharing no code with the library."""

from __future__ import annotations

import torch
from torch import Tensor


def infonce_by_hand(
    queries: Tensor,
    query_labels: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    temperature: float,
) -> Tensor:
    """Its value, differentiable."""
    losses = []
    for query, label in zip(queries, query_labels.tolist(), strict=True):
        own, every = [], []
        for key, of_key in zip(keys, key_labels.tolist(), strict=True):
            cosine = (query * key).sum() / (query.square().sum() * key.square().sum()).sqrt()
            every.append((cosine / temperature).exp())
            if of_key == label:
                own.append(every[-1])
        losses.append(-(torch.stack(own).mean() / torch.stack(every).sum()).log())
    return torch.stack(losses).mean()
