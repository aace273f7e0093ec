"""IDM as its published loop is structured, written anew in plain torch: oracle and rival.

    loss = DM's + w a mean over images of cross-entropy(network(A_c(image)), c)

Stored images are cut into four (in general factor x factor), column by column, each part enlarged
on its own. The queue is a list of networks, each with its own SGD and its counts of images seen and
recognised; a class at a time goes through one of them. `turn` takes a step of SGD after each class.
What is drawn is what `cmidd.methods.idm` draws, so that in float64 both give the same up to
rounding.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from bench.plain.classwise import ClasswiseLoop
from bench.plain.dm import augmented
from bench.plain.networks import PlainNetwork
from cmidd.seeds import generator, seed_of


def decoded(images: Tensor, factor: int, grey: Tensor) -> Tensor:
    """The parts of images (n, ch, H, W): the first part of all, then the second of all."""
    height, width = images.shape[2:]
    down, across = math.ceil(height / factor), math.ceil(width / factor)
    whole = grey.view(1, -1, 1, 1).repeat(len(images), 1, factor * down, factor * across)
    whole[:, :, :height, :width] = images
    parts = []
    for j in range(factor):
        for i in range(factor):
            part = whole[:, :, i * down : (i + 1) * down, j * across : (j + 1) * across]
            parts.append(F.interpolate(part, size=(height, width), mode="bilinear"))
    return torch.cat(parts)


class Member(NamedTuple):
    """A network of the queue."""

    number: int
    network: PlainNetwork
    sgd: torch.optim.SGD
    counts: list[int]  # images seen, and recognised


class PlainIDM(ClasswiseLoop):
    """The step on one dataset; arguments as of `cmidd.methods.idm.IDM`."""

    def __init__(self, *given: Any, **more: Any) -> None:
        """Prepare steps, with no network yet."""
        super().__init__(*given, **more)
        self.queue: list[Member] = []
        grey = [(0.5 - m) / s for m, s in zip(self.dataset.mean, self.dataset.std, strict=True)]
        self.grey = torch.tensor(grey, dtype=self.dtype, device=self.device)

    def step(self, images: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Loss, and its gradient by the stored images."""
        images = images.detach().requires_grad_()
        member = self.prepare(images, iteration)
        losses = [self.of_class(images, c, member) for c in range(len(self.classes))]
        with record_function("backward"):
            loss = torch.stack(losses).sum()
            (gradient,) = torch.autograd.grad(loss, images)
        self.train_some(iteration)
        return loss.detach(), gradient

    def turn(self, images: Tensor, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """A whole iteration, in which the optimizer moves the images after each class."""
        member = self.prepare(images, iteration)
        for c in range(len(self.classes)):
            loss = self.of_class(images, c, member)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.train_some(iteration)

    def prepare(self, images: Tensor, iteration: int) -> Member:  # noqa: ARG002
        """New networks where they are due; the network of the iteration."""
        with record_function("dm.network"):
            if iteration == 0:
                self.queue = []
                for number in range(3):
                    self.push(number)
            if iteration % self.options.push_interval == 0:
                self.push(self.queue[-1].number + 1)
            draws = generator(self.seed, "queue", iteration)
            place = int(torch.randint(len(self.queue), (), generator=draws))
            self.chosen = torch.randperm(len(self.queue), generator=draws).tolist()
            self.queue[place].network.requires_grad_(False)
        with record_function("dm.real_images"):
            self.drawn, self.batches = self.augmentation(iteration), self.real_batches(iteration)
        return self.queue[place]

    def push(self, number: int) -> None:
        """Add a new network, in the place of the oldest one if the queue is full."""
        if len(self.queue) == self.options.queue_size:
            self.queue.pop(0)
        network = self.new_network(number)
        sgd = torch.optim.SGD(network.parameters(), self.options.lr_net, 0.9, weight_decay=5e-4)
        self.queue.append(Member(number, network, sgd, [0, 0]))

    def of_class(self, images: Tensor, c: int, member: Member) -> Tensor:
        """The loss of a class, with a graph."""
        network, drawn = member.network, self.drawn
        with record_function("dm.real_images"):
            real = augmented(self.batches[c], self.strategy, drawn, c)
        with record_function("dm.real_branch"), torch.no_grad():
            target = network.embed(real).mean(dim=0)
        with record_function("dm.synthetic_branch"):
            parts = decoded(images[self.classes[c]], self.options.factor, self.grey)
            synthetic = augmented(parts, self.strategy, drawn, c)
            features = network.embed(synthetic)
            distance = (target - features.mean(dim=0)).square().sum()
            labels = torch.full((len(features),), c, device=self.device)
            entropy = F.cross_entropy(network.head(features), labels)
            seen, right = member.counts
            weight: float = self.options.accuracy_weight * (100 * right / seen if seen else 0)
            return distance + weight * entropy + self.relations(network, real, synthetic)

    def relations(self, network: PlainNetwork, real: Tensor, synthetic: Tensor) -> Tensor:  # noqa: ARG002
        """What IID adds for a class."""
        return torch.zeros((), dtype=self.dtype, device=self.device)

    def train_some(self, iteration: int) -> None:
        """Train networks on batches of real images, and count what they recognise."""
        with record_function("idm.training"):
            for place in self.chosen[: self.options.networks_trained]:
                self.train(self.queue[place], iteration)

    def train(self, member: Member, iteration: int) -> None:
        """The steps of one network."""
        seed, steps = seed_of(self.seed, "training", iteration, member.number), 0
        size, rest = self.options.batch_net, torch.empty(0, dtype=torch.int64)
        passes = 0
        member.network.requires_grad_(True)
        while steps < self.options.steps_net:
            while len(rest) < size:
                order = torch.randperm(len(self.real), generator=generator(seed, "order", passes))
                rest, passes = torch.cat([rest, order]), passes + 1
            rows, rest = rest[:size], rest[size:]
            x, y = self.real[rows.to(self.device)], self.dataset.train.labels[rows].to(self.device)
            logits = member.network.head(member.network.embed(x))
            loss = F.cross_entropy(logits, y)
            member.sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            member.sgd.step()
            member.counts[0] += len(rows)
            member.counts[1] += int((logits.argmax(dim=1) == y).sum())
            steps += 1
