"""What the images of a batch start from, and teachers that are moved before it begins."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.datasets import Dataset
from cmidd.first_images import real_rows
from cmidd.networks import freeze
from cmidd.options.recover import RecoverOptions
from cmidd.rded import rded_images
from cmidd.seeds import generator
from cmikernels.precision import computing


def start(
    dataset: Dataset,
    labels: Tensor,
    numbers: Tensor,
    options: RecoverOptions,
    teachers: Sequence[nn.Module],
    device: torch.device,
) -> Tensor:
    """First images, normalised, of classes `labels` (N,) and with these numbers in their classes.

    An image depends on its class and number alone, whatever the batch.
    """
    pairs = list(zip(labels.tolist(), numbers.tolist(), strict=True))
    if options.start == "noise":
        noise = [
            torch.randn(*dataset.shape, generator=generator(options.seed, "recovery: start", *pair))
            for pair in pairs
        ]
        return torch.stack(noise).to(device)
    if options.start == "real":
        rows = {c: real_rows(dataset, options.ipc, c, options.seed) for c, _ in pairs}
        chosen = torch.stack([rows[c][number] for c, number in pairs])
        return dataset.to_input(dataset.train.source[chosen].to(device))
    with computing(options.precision, device.type, network=True):
        found = {
            c: rded_images(
                dataset, teachers[0], c, options.ipc, options.rded_factor, options.seed, device
            )
            for c in sorted({c for c, _ in pairs})
        }
    return torch.stack([found[c][number] for c, number in pairs]).to(device)


def perturbed(
    teacher: nn.Module, images: Tensor, labels: Tensor, steps: int, size: float
) -> nn.Module:
    """A copy of a teacher whose weights moved up the loss of images, by `size` in all.

    weights <- weights + size / steps * g / |g|,   g = d cross-entropy / d weights,  `steps` times
    """
    moved = copy.deepcopy(teacher).eval().requires_grad_()
    weights = list(moved.parameters())
    for _ in range(steps):
        loss = F.cross_entropy(moved(images), labels)
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        if length > 0:
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.add_(size / steps / length * gradient)
    return freeze(moved)
