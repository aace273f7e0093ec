"""DM with CMI as its published loop is structured, written anew in plain torch: oracle and rival.

    loss = sum over classes of || mean phi(A_c(real)) - mean phi(A_c(synthetic)) ||^2
    CMI  = 1/N sum over images s of KL(P_s || mean of P over the class of s),  P = softmax(features)

Everything is made where it is needed and nothing is kept: phi is a new module in every step, one
class at a time goes through it, the network of CMI is made anew and its weights are read from their
own file, all synthetic images go through that one in one batch, and one backward pass ends the
step. What is drawn (first weights, rows of real images, augmentation, number of the network) is
what `cmidd.methods.dm` and `CMIRegularizer` draw, so that in float64 both give the same up to
rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.augment import Draw, Strategy, draw
from cmidd.datasets import Dataset
from cmidd.methods.base import given_network
from cmidd.methods.dm import DMOptions
from cmidd.networks import NetworkSpec, initialize
from cmidd.seeds import generator


def color(images: Tensor, u: list[float]) -> Tensor:
    """Brightness, saturation and contrast."""
    images = images + (u[0] - 0.5)
    mean = images.mean(dim=1, keepdim=True)
    images = (images - mean) * (2 * u[1]) + mean
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (u[2] + 0.5) + mean


def crop(images: Tensor, u: list[float]) -> Tensor:
    """A shift by up to an eighth of each side: a window on the images with zeros around them."""
    height, width = images.shape[2:]
    most = [int(side / 8 + 0.5) for side in (height, width)]
    top, left = (int(number * (2 * m + 1)) for number, m in zip(u, most, strict=True))
    around = F.pad(images, (most[1], most[1], most[0], most[0]))
    return around[:, :, top : top + height, left : left + width]


def cutout(images: Tensor, u: list[float]) -> Tensor:
    """Zeros in a rectangle of half of each side."""
    kept = torch.ones(images.shape[2:], dtype=images.dtype)
    spans = []
    for number, side in zip(u, images.shape[2:], strict=True):
        length = int(side / 2 + 0.5)
        first = int(number * (side + 1 - length % 2)) - length // 2
        spans.append(slice(max(first, 0), first + length))
    kept[spans[0], spans[1]] = 0
    return images * kept.to(images.device)


def flip(images: Tensor, u: list[float]) -> Tensor:
    """Left and right, every other time."""
    return images.flip(3) if u[0] < 0.5 else images


def scale(images: Tensor, u: list[float]) -> Tensor:
    """A stretch of each side."""
    across, down = (1 / 1.2 + number * (1.2 - 1 / 1.2) for number in u)
    return resampled(images, [[across, 0, 0], [0, down, 0]])


def rotate(images: Tensor, u: list[float]) -> Tensor:
    """A turn by up to 15 degrees."""
    angle = math.radians(15 * (2 * u[0] - 1))
    cos, sin = math.cos(angle), math.sin(angle)
    return resampled(images, [[cos, -sin, 0], [sin, cos, 0]])


def resampled(images: Tensor, matrix: list[list[float]]) -> Tensor:
    """Images on a grid that `matrix` moves."""
    theta = torch.tensor(matrix, dtype=images.dtype, device=images.device)
    shape = list(images.shape)
    grid = F.affine_grid(theta.expand(len(images), 2, 3), shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


Operation = Callable[[Tensor, list[float]], Tensor]
# Each with the columns of its numbers in a `Draw`.
DSA: dict[str, tuple[slice, Operation]] = {
    "color": (slice(0, 3), color),
    "crop": (slice(3, 5), crop),
    "cutout": (slice(5, 7), cutout),
    "flip": (slice(7, 8), flip),
    "scale": (slice(8, 10), scale),
    "rotate": (slice(10, 11), rotate),
}


def augmented(images: Tensor, strategy: Strategy, drawn: Draw, group: int) -> Tensor:
    """One class's images `(n, ch, H, W)`, changed by what was drawn for it."""
    for index in drawn.operations[group].tolist():
        columns, operation = DSA[strategy.operations[index]]
        images = operation(images, drawn.numbers[group, columns].tolist())
    return images


class PlainNetwork(nn.Module):
    """Features and a linear head, with the names that the networks of `cmidd` have."""

    def __init__(self, features: nn.Module, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(embed_dim, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """`(N, embed_dim)`."""
        embedding: Tensor = self.features(images).flatten(1)
        return embedding


def convnet(
    channels: int, size: int, num_classes: int, *, depth: int = 3, width: int = 128
) -> PlainNetwork:
    """The network that DM matches in; images of 28 pixels are not padded here."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(width, width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
        channels, size = width, size // 2
    return PlainNetwork(nn.Sequential(*layers), width * size * size, num_classes)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(width, width)
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != width:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.append(nn.GroupNorm(width, width))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps))


def resnet18(channels: int, size: int, num_classes: int, *, width: int = 64) -> PlainNetwork:
    """The network that CMI is taken in."""
    stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, nn.GroupNorm(width, width), nn.ReLU()]
    channels = width
    for stage in range(4):
        for stride in (2 if stage else 1, 1):
            layers.append(_Block(channels, width << stage, stride))
            channels = width << stage
    last = size // 8
    layers.append(nn.AvgPool2d(min(last, 4)))
    return PlainNetwork(nn.Sequential(*layers), channels * max(last // 4, 1) ** 2, num_classes)


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


class PlainDM:
    """The step on one dataset; arguments as of `cmidd.methods.dm.DM`, and the regulariser."""

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: DMOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        cmi: PlainCMI | None = None,
    ) -> None:
        """Prepare steps on images whose labels are `labels`, ascending."""
        self.dataset, self.options, self.seed, self.cmi = dataset, options, seed, cmi
        self.device, self.dtype = device, dtype
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        self.real = dataset.to_input(dataset.train.images.to(device), dtype)
        ends = torch.bincount(labels.cpu()).cumsum(0).tolist()
        self.classes = [slice(a, b) for a, b in itertools.pairwise([0, *ends])]

    def step(self, images: Tensor, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of DM, weighted CMI, and the gradient of their sum."""
        images = images.detach().requires_grad_()
        network = self.new_network(iteration)
        drawn = self.draw(iteration)
        loss = torch.zeros((), dtype=self.dtype, device=self.device)
        for c, real in enumerate(self.real_batches(iteration)):
            real = augmented(real, self.strategy, drawn, c)
            target = network.embed(real).detach().mean(dim=0)
            synthetic = augmented(images[self.classes[c]], self.strategy, drawn, c)
            loss = loss + (target - network.embed(synthetic).mean(dim=0)).square().sum()
        value = torch.zeros_like(loss)
        if self.cmi is not None:
            value = self.weighted_cmi(self.trained_network(iteration), images)
        (gradient,) = torch.autograd.grad(loss + value, images)
        return loss.detach(), value.detach(), gradient

    def new_network(self, iteration: int) -> PlainNetwork:
        """The random network of an iteration."""
        # Made without numbers: `initialize` gives them, and once is what the published loop pays.
        with torch.device("meta"):
            network = self._made(convnet, given_network(self.options.network))
        network.to_empty(device="cpu")
        initialize(network, generator(self.seed, "network", iteration))
        return network.to(self.device, self.dtype).requires_grad_(False)

    def trained_network(self, iteration: int) -> PlainNetwork:
        """The network of CMI of an iteration, from its file."""
        assert self.cmi is not None
        (number,) = self.cmi.choose(iteration)
        with torch.random.fork_rng(devices=[]):  # first numbers for nothing, as published
            network = self._made(resnet18, self.cmi.network)
        network.load_state_dict(torch.load(self.cmi.files[number], weights_only=True))
        return network.to(self.device, self.dtype).requires_grad_(False)

    def _made(self, architecture: Callable[..., PlainNetwork], spec: str) -> PlainNetwork:
        channels, size, _ = self.dataset.shape
        options = dict(NetworkSpec.parse(spec).options)
        return architecture(channels, size, self.dataset.num_classes, **options)

    def draw(self, iteration: int) -> Draw:
        """The augmentation of an iteration, a group a class."""
        return draw(self.strategy, self.dataset.num_classes, generator(self.seed, "dsa", iteration))

    def real_batches(self, iteration: int) -> list[Tensor]:
        """Normalised real images of each class."""
        draws = generator(self.seed, "real", iteration)
        batches = []
        for first, last in itertools.pairwise(self.dataset.train.offsets.tolist()):
            rows = first + torch.randperm(last - first, generator=draws)[: self.options.batch_real]
            batches.append(self.real[rows.to(self.device)])
        return batches

    def weighted_cmi(self, network: PlainNetwork, images: Tensor) -> Tensor:
        """CMI of `images` (N, ch, H, W) as published: probabilities, centroids and logarithms."""
        assert self.cmi is not None
        features = network.embed(images)  # (N, M)
        p, log_p = features.softmax(dim=1), features.log_softmax(dim=1)
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for rows in self.classes:
            log_q = p[rows].mean(dim=0, keepdim=True).log().expand_as(p[rows])
            total = total + F.kl_div(log_q, log_p[rows], reduction="sum", log_target=True)
        return self.cmi.weight * total / len(images)
