"""IDC as its published loop is structured, written anew in plain torch: oracle and rival.

    loss = sum over convolutions of the squared distance of the gradients on real and on synthetic

Stored images are pixels in [0, 1], class by class: each is cut into its cells, which are enlarged
one at a time; real and synthetic images are normalised and augmented as one batch. `turn` takes a
step of SGD after each class, and clamps the pixels before an iteration. What is drawn is what
`cmidd.methods.idc` draws, so that in float64 both give the same up to rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from bench.plain.classwise import ClasswiseLoop
from bench.plain.dc import distance
from bench.plain.dm import augmented
from cmidd.augment import augment, draw
from cmidd.options.idc import IDCOptions
from cmidd.seeds import generator, seed_of


def decoded(image: Tensor, factor: int) -> list[Tensor]:
    """The cells of an image (ch, H, W) of pixels, row by row."""
    _, height, width = image.shape
    step = math.ceil(height / factor), math.ceil(width / factor)
    missing = step[0] * factor - height, step[1] * factor - width
    whole = F.pad(image, (0, missing[1], 0, missing[0]), value=0.5)
    found = []
    for i in range(factor):
        for j in range(factor):
            cell = whole[:, i * step[0] : (i + 1) * step[0], j * step[1] : (j + 1) * step[1]]
            found.append(F.interpolate(cell[None], size=(height, width), mode="bilinear")[0])
    return found


class PlainIDC(ClasswiseLoop):
    """The updates on one dataset; arguments as of `cmidd.methods.idc.IDC`."""

    options: IDCOptions

    def step(self, images: Tensor, iteration: int, update: int = 0) -> tuple[Tensor, Tensor]:
        """Loss, and its gradient by images that are stored as `cmidd` stores them."""
        self.prepare(iteration, update)
        images = images.detach().requires_grad_()
        pixels = images * self.of_channels(self.dataset.std) + self.of_channels(self.dataset.mean)
        losses = [
            self.of_class(pixels, c, iteration, update) for c in range(self.dataset.num_classes)
        ]
        with record_function("idc.synthetic_gradients"):
            loss = torch.stack(losses).sum()
            (gradient,) = torch.autograd.grad(loss, images)
        return loss.detach(), gradient

    def turn(self, pixels: Tensor, optimizer: torch.optim.Optimizer, iteration: int) -> None:
        """A whole iteration on pixels, which the optimizer moves after each class."""
        with torch.no_grad():
            pixels.clamp_(0, 1)
        for update in range(self.options.inner_steps):
            self.prepare(iteration, update)
            for c in range(self.dataset.num_classes):
                loss = self.of_class(pixels, c, iteration, update)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def prepare(self, iteration: int, update: int) -> None:
        """A new network, or its training on real images."""
        if update == 0:
            with record_function("idc.network"):
                self.network = self.new_network(iteration)
                self.sgd = torch.optim.SGD(
                    self.network.parameters(), self.options.lr_net, 0.9, weight_decay=5e-4
                )
        else:
            with record_function("idc.inner_training"):
                self.train_network(iteration, update - 1)

    def of_channels(self, numbers: tuple[float, ...]) -> Tensor:
        """A number for each channel, as images take them."""
        return torch.tensor(numbers, dtype=self.dtype, device=self.device).view(-1, 1, 1)

    def of_class(self, pixels: Tensor, c: int, iteration: int, update: int) -> Tensor:
        """The loss of a class, with a graph."""
        real = self.real_batches(iteration, update)[c]
        with record_function("idc.synthetic_gradients"):
            cells = [
                cell
                for image in pixels[self.classes[c]]
                for cell in decoded(image, self.options.factor)
            ]
            if len(cells) > self.options.batch_syn:
                draws = generator(self.seed, "cells", iteration, update, c)
                chosen = torch.randperm(len(cells), generator=draws)[: self.options.batch_syn]
                cells = [cells[k] for k in chosen.tolist()]
            synthetic = torch.stack(cells) - self.of_channels(self.dataset.mean)
            both = torch.cat([real, synthetic / self.of_channels(self.dataset.std)])
            both = augmented(both, self.strategy, self.augmentation(iteration, update), c)
        with record_function("idc.real_gradients"):
            target = [each.detach() for each in self.gradients(both[: len(real)], c)]
        with record_function("idc.synthetic_gradients"):
            found = self.gradients(both[len(real) :], c)
            return distance(found, target, self.options.metric)

    def gradients(self, images: Tensor, label: int) -> list[Tensor]:
        """Those of the cross-entropy of images of one class, by the weights of convolutions."""
        labels = torch.full((len(images),), label, device=self.device)
        loss = F.cross_entropy(self.network.head(self.network.embed(images)), labels)
        convolutions = [each for each in self.network.parameters() if each.ndim == 4]
        return list(torch.autograd.grad(loss, convolutions, create_graph=True))

    def train_network(self, iteration: int, update: int) -> None:
        """Batches of real images until enough are seen, some of them mixed by CutMix."""
        options, seed = self.options, seed_of(self.seed, "inner", iteration, update)
        strategy = self.strategy.without("cutout") if options.cutmix_net else self.strategy
        order = torch.randperm(len(self.real), generator=generator(seed, "order", 0))
        seen = 0
        for number, rows in enumerate(torch.split(order, options.batch_net)):
            draws = generator(seed, "augmentation", 0, number)
            x, y = self.real[rows.to(self.device)], self.dataset.train.labels[rows].to(self.device)
            x = augment(x, strategy, draw(strategy, len(rows), draws, one_operation=True))
            other, share = y, 0.0
            if options.cutmix_net:
                draws = generator(seed, "cutmix", 0, number)
                chance, u, *centre = torch.rand(4, dtype=torch.float64, generator=draws).tolist()
                if chance < options.cutmix_net:
                    x, other, share = cut_and_mixed(x, y, u, centre, draws)
            logits = self.network.head(self.network.embed(x))
            loss = (1 - share) * F.cross_entropy(logits, y) + share * F.cross_entropy(logits, other)
            self.sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.sgd.step()
            seen += len(rows)
            if seen >= options.images_net:
                return


def cut_and_mixed(
    images: Tensor, labels: Tensor, u: float, centre: list[float], draws: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Images with a rectangle of others in them, the labels of these, and the rectangle's share."""
    height, width = images.shape[2:]
    other = torch.randperm(len(images), generator=draws).to(images.device)
    inside = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    row, column = int(centre[0] * height), int(centre[1] * width)
    down, across = (int(side * math.sqrt(1 - u)) // 2 for side in (height, width))
    inside[max(row - down, 0) : row + down, max(column - across, 0) : column + across] = True
    share = inside.double().mean().item()
    return torch.where(inside, images[other], images), labels[other], share
