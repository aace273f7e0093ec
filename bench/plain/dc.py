"""DC and DSA as their published loop is structured, written anew in plain torch: oracle and rival.

    loss = sum over classes, layers, rows of 1 - cos(gradient on real, gradient on synthetic)

Class by class and layer by layer: the whole batch of real images goes through the network, autograd
gives the gradients, those of synthetic images with a graph, distances add up, and one backward pass
ends the update. Between updates a plain optimiser trains the network. What is drawn is what
`cmidd.methods.dc` draws, so that in float64 both give the same up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from bench.plain.classwise import ClasswiseLoop
from bench.plain.dm import augmented
from cmidd.augment import augment, draw
from cmidd.options.dc import DCOptions
from cmidd.seeds import generator, seed_of


def distance(synthetic: list[Tensor], real: list[Tensor], metric: str) -> Tensor:
    """Of the gradients of all parameters, layer by layer."""
    pairs = list(zip(synthetic, real, strict=True))
    if metric == "mse":
        return torch.stack([(s - r).square().sum() for s, r in pairs]).sum()
    if metric == "l1":
        return torch.stack([(s - r).abs().sum() for s, r in pairs]).sum()
    if metric == "cosine":
        s, r = (torch.cat([g.flatten() for g in side])[None] for side in (synthetic, real))
        return row_distance(s, r)
    rows = [row_distance(s.flatten(1), r.flatten(1)) for s, r in pairs if s.ndim in (2, 4)]
    return torch.stack(rows).sum()


def row_distance(synthetic: Tensor, real: Tensor) -> Tensor:
    """Sum over rows of 1 - cosine, of gradients `(rows, numbers)`."""
    norms = synthetic.norm(dim=1) * real.norm(dim=1)
    distances: Tensor = 1 - (synthetic * real).sum(dim=1) / (norms + 1e-6)
    return distances.sum()


class PlainDC(ClasswiseLoop):
    """The updates on one dataset; arguments as of `cmidd.methods.dc.GradientMatching`."""

    options: DCOptions

    def step(self, images: Tensor, iteration: int, update: int = 0) -> tuple[Tensor, Tensor]:
        """Loss, weighted CMI included, and its gradient."""
        if update == 0:
            with record_function("dc.network"):
                self.network = self.new_network(iteration)
        else:
            with record_function("dc.inner_training"):
                self.train_network(images.detach(), iteration, update - 1)
        loss, gradient = self.match(images, iteration, update)
        if self.cmi is not None:
            with record_function("cmi"):
                value = self.cmi.weighted(images, self.classes, iteration)
                loss = loss + value.detach()
                gradient = gradient + torch.autograd.grad(value, images)[0]
        return loss, gradient

    def match(self, images: Tensor, iteration: int, update: int) -> tuple[Tensor, Tensor]:
        """Loss and gradient with the network as it is."""
        images = images.detach().requires_grad_()
        drawn = self.augmentation(iteration, update)
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        for c, real in enumerate(self.real_batches(iteration, update)):
            with record_function("dc.real_gradients"):
                target = self.gradients(augmented(real, self.strategy, drawn, c), c)
            with record_function("dc.synthetic_gradients"):
                seen = augmented(images[self.classes[c]], self.strategy, drawn, c)
                gradients = self.gradients(seen, c, create_graph=True)
                loss = loss + distance(gradients, target, self.options.metric)
        with record_function("dc.synthetic_gradients"):
            (gradient,) = torch.autograd.grad(loss, images)
        return loss.detach(), gradient

    def gradients(self, images: Tensor, label: int, *, create_graph: bool = False) -> list[Tensor]:
        """Those of the cross-entropy of images of one class."""
        labels = torch.full((len(images),), label, device=self.device)
        logits = self.network.head(self.network.embed(images))
        loss = F.cross_entropy(logits, labels)
        parameters = list(self.network.parameters())
        return list(torch.autograd.grad(loss, parameters, create_graph=create_graph))

    def train_network(self, images: Tensor, iteration: int, update: int) -> None:
        """The training after an update; one operation changes a batch, each image by itself."""
        seed = seed_of(self.seed, "inner", iteration, update)
        optimizer = torch.optim.SGD(self.network.parameters(), self.options.lr_net)
        for epoch in range(self.options.inner_epochs):
            order = torch.randperm(len(images), generator=generator(seed, "order", epoch))
            for number, rows in enumerate(torch.split(order, self.options.batch_net)):
                draws = generator(seed, "augmentation", epoch, number)
                drawn = draw(self.strategy, len(rows), draws, one_operation=True)
                x = augment(images[rows.to(self.device)], self.strategy, drawn)
                logits = self.network.head(self.network.embed(x))
                loss = F.cross_entropy(logits, self.labels[rows.to(self.device)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
