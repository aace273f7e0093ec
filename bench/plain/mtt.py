"""MTT with the graph of all student steps, written anew in plain torch: oracle and rival.

    theta_{i+1} = theta_i - a grad CE(theta_i; batch i),    differentiated through all N at once

What is drawn (expert, epoch, batches, augmentation) is what `cmidd.methods.mtt` draws, so that in
float64 both give the same up to rounding; memory here grows with N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.profiler import record_function

from cmidd.augment import Strategy, augment, draw
from cmidd.datasets import Dataset
from cmidd.methods.mtt import SURE
from cmidd.networks import build_network
from cmidd.options.mtt import MTTOptions
from cmidd.pretrained.experts import Experts
from cmidd.seeds import generator


@dataclass(frozen=True)
class PlainStep:
    """The loss of a step and its gradients."""

    loss: Tensor
    images: Tensor
    step_size: Tensor
    labels: Tensor | None  # (N, C): of the numbers whose softmax are soft labels


class PlainMTT:
    """The step on one dataset; arguments as of `cmidd.methods.mtt.MTT`."""

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: MTTOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare steps on images whose labels are `labels`."""
        self.options, self.seed, self.device, self.dtype = options, seed, device, dtype
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        self.experts = Experts.load(options.experts)
        record = self.experts.record
        channels, size, _ = dataset.shape
        self.network = build_network(record["network"], channels, size, dataset.num_classes)
        self.network.to(device, dtype)
        self.step_size = record["lr"] if options.step_size is None else options.step_size
        self.labels = labels.to(device)
        self.label_logits: Tensor | None = None
        if options.soft_labels:
            others = (1 - SURE) / (dataset.num_classes - 1)
            self.label_logits = torch.full(
                (len(labels), dataset.num_classes), others, dtype=dtype, device=device
            )
            self.label_logits[torch.arange(len(labels)), self.labels] = SURE
            self.label_logits = self.label_logits.log()

    def step(self, images: Tensor, iteration: int) -> PlainStep:
        """Loss and gradients."""
        images = images.detach().requires_grad_()
        rate = torch.tensor(self.step_size, dtype=self.dtype, device=self.device).requires_grad_()
        leaves = [images, rate]
        if self.label_logits is not None:
            leaves.append(self.label_logits.detach().requires_grad_())
        with record_function("mtt.experts"):
            start, target = self.window(iteration)
        with record_function("mtt.student"):
            theta = self.walk(start, leaves, iteration)
        with record_function("mtt.adjoint"):
            loss = squared_distance(theta, target) / squared_distance(start, target)
            gradients = torch.autograd.grad(loss, leaves)
        return PlainStep(
            loss.detach(), gradients[0], gradients[1], gradients[2] if len(leaves) == 3 else None
        )

    def walk(self, start: list[Tensor], leaves: list[Tensor], iteration: int) -> list[Tensor]:
        """Parameters after all student steps; leaves are images, rate and, if learned, labels."""
        images, rate = leaves[:2]
        theta = [p.clone().requires_grad_() for p in start]
        for i, rows in enumerate(self.batches(len(images), iteration)):
            draws = generator(self.seed, "dsa", iteration, i)
            drawn = draw(self.strategy, len(rows), draws, one_operation=True)
            x = augment(images[rows], self.strategy, drawn)
            y = self.labels[rows] if len(leaves) == 2 else leaves[2][rows].softmax(dim=1)
            named = dict(zip(dict(self.network.named_parameters()), theta, strict=True))
            loss = F.cross_entropy(functional_call(self.network, named, (x,)), y)
            gradients = torch.autograd.grad(loss, theta, create_graph=True)
            theta = [p - rate * g for p, g in zip(theta, gradients, strict=True)]
        return theta

    def window(self, iteration: int) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters of an expert before and after some of its epochs."""
        options, draws = self.options, generator(self.seed, "expert", iteration)
        expert = int(torch.randint(len(self.experts), (), generator=draws))
        epoch = int(torch.randint(options.max_start_epoch, (), generator=draws))
        return (
            self.parameters(expert, epoch),
            self.parameters(expert, epoch + options.expert_epochs),
        )

    def parameters(self, expert: int, epoch: int) -> list[Tensor]:
        """The expert's parameters one by one."""
        flat, parameters = self.experts.parameters(expert, epoch), []
        for like in self.network.parameters():
            parameters.append(flat[: like.numel()].view_as(like).to(self.device, self.dtype))
            flat = flat[like.numel() :]
        return parameters

    def batches(self, count: int, iteration: int) -> Iterator[Tensor]:
        """Rows of each student step; an order is drawn anew when it is used up."""
        size = self.options.batch_syn or count
        turn, left = 0, torch.empty(0, dtype=torch.int64)
        for _ in range(self.options.student_steps):
            if size >= count:
                left = torch.arange(count)
            elif not len(left):
                draws = generator(self.seed, "batches", iteration, turn)
                turn, left = turn + 1, torch.randperm(count, generator=draws)
            yield left[:size].to(self.device)
            left = left[size:]


def squared_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Over all parameters."""
    return torch.stack([(p - q).square().sum() for p, q in zip(a, b, strict=True)]).sum()
