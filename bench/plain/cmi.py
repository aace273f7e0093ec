"""CMI as its published loop takes it, written anew in plain torch.

    CMI  = 1/N sum over images s of KL(P_s || mean of P over the class of s),  P = softmax(features)

The network is made anew in every step and its weights are read from their own file, and all images
go through it in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.plain.networks import PlainNetwork, made, resnet18


@dataclass(frozen=True)
class PlainCMI:
    """The regulariser: a file for each trained network, and how a step chooses one.

    Args:
        files: a saved state dict each.
        network: what they are the states of, such as resnet18:width=64.
        weight: factor on CMI.
        choose: iteration to the numbers of its networks, such as `CMIRegularizer.draw`.
    """

    files: Sequence[Path]
    network: str
    weight: float
    choose: Callable[[int], Sequence[int]]

    def weighted(self, images: Tensor, classes: Sequence[slice], iteration: int) -> Tensor:
        """Of images (N, ch, H, W): probabilities, centroids and logarithms, as published."""
        (number,) = self.choose(iteration)
        network = trained_network(self.files[number], self.network, images, len(classes))
        features = network.embed(images)  # (N, M)
        p, log_p = features.softmax(dim=1), features.log_softmax(dim=1)
        total = torch.zeros((), dtype=images.dtype, device=images.device)
        for rows in classes:
            log_q = p[rows].mean(dim=0, keepdim=True).log().expand_as(p[rows])
            total = total + F.kl_div(log_q, log_p[rows], reduction="sum", log_target=True)
        return self.weight * total / len(images)


def trained_network(file: Path, spec: str, images: Tensor, num_classes: int) -> PlainNetwork:
    """A network made for images like these, with the weights of its file."""
    with torch.random.fork_rng(devices=[]):  # first numbers for nothing, as published
        network = made(resnet18, spec, *images.shape[1:3], num_classes)
    network.load_state_dict(torch.load(file, weights_only=True))
    return network.to(images.device, images.dtype).requires_grad_(False)
