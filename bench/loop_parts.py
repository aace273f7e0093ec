"""The parts of a DM step as functions of the iteration: of our loop, the plain one, convolutions.

step               all of the following: one update of the synthetic images
networks           fresh weights of DM's network; the plain loop also reads that of CMI
real batch         real images chosen and normalised
augmentation       of real and synthetic images, and back to the synthetic ones
real branch        class means of the embeddings of real images
synthetic branch   those of synthetic images, the loss, and back to the images
regulariser        CMI and back; our loop leaves it out at ipc 1, where it is always 0
optimiser          SGD on the images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain_dm import PlainCMI, PlainDM, augmented
from cmidd.augment import augment, draw
from cmidd.cmi import CMIOptions
from cmidd.datasets import Dataset, ImageSet
from cmidd.dm import DM, DMOptions, whole_classes
from cmidd.networks import Network, build_network, freeze, initialize
from cmidd.seeds import generator
from cmikernels import ClassIndex, CMIRegularizer

STEP, NETWORKS, REAL_BATCH, AUGMENTATION = "step", "networks", "real batch", "augmentation"
REAL, SYNTHETIC, REGULARISER = "real branch", "synthetic branch", "regulariser"
OPTIMISER = "optimiser"
PARTS = (STEP, NETWORKS, REAL_BATCH, AUGMENTATION, REAL, SYNTHETIC, REGULARISER, OPTIMISER)

Run = Callable[[int], object]

_SEED = 0
_WEIGHT = 2000.0  # of CMI, as published for CIFAR-10 at ipc 50
_BANK_SIZE = 3


@dataclass(frozen=True)
class Sizes:
    """How large the loop is; the default is that of most published results."""

    classes: int = 10
    batch_real: int = 256
    pixels: int = 32
    network: str = "convnet"
    bank: str = "resnet18"


def random_dataset(per_class: Sequence[int], pixels: int, *, mirror: bool = True) -> Dataset:
    """Noise in the place of real images: so many of each class, 3 x pixels x pixels."""
    labels = torch.arange(len(per_class)).repeat_interleave(torch.tensor(per_class))
    noise = torch.randint(256, (len(labels), 3, pixels, pixels), generator=generator("noise"))
    images = ImageSet.from_arrays(noise.to(torch.uint8), labels, len(per_class))
    names = tuple(map(str, range(len(per_class))))
    return Dataset("noise", images, images, names, (0.5,) * 3, (0.3,) * 3, mirror)


def untrained_bank(spec: str, pixels: int, classes: int) -> list[Network]:
    """Networks as a bank has them, but for their training; in float32 on the CPU."""
    networks = []
    for number in range(_BANK_SIZE):
        network = build_network(spec, 3, pixels, classes)
        initialize(network, generator("bank", number))
        networks.append(freeze(network))
    return networks


def save_each(networks: Sequence[nn.Module], folder: Path) -> list[Path]:
    """A file for each network, as the published loop reads them."""
    files = [folder / f"{number}.pt" for number in range(len(networks))]
    for network, file in zip(networks, files, strict=True):
        torch.save(network.state_dict(), file)
    return files


class Setup:
    """What both loops work on; the files of the plain one's bank are written into `folder`."""

    def __init__(self, sizes: Sizes, ipc: int, device: torch.device, folder: Path) -> None:
        self.sizes, self.device = sizes, device
        self.dataset = random_dataset([2 * sizes.batch_real] * sizes.classes, sizes.pixels)
        self.labels = torch.arange(sizes.classes).repeat_interleave(ipc)
        shape = (len(self.labels), *self.dataset.shape)
        self.images = torch.randn(shape, generator=generator("images")).to(device)
        self.images.requires_grad_()
        self.images.grad = torch.ones_like(self.images)
        # A step of length 0 takes as long as another, and all rounds see the same images.
        self.optimizer = torch.optim.SGD([self.images], lr=0.0, momentum=0.5)
        bank = untrained_bank(sizes.bank, sizes.pixels, sizes.classes)
        self.files = save_each(bank, folder)
        chunk_size = CMIOptions().cmi_chunk
        bank = [network.to(device) for network in bank]
        self.regularizer = CMIRegularizer(bank, _WEIGHT, chunk_size=chunk_size, seed=_SEED)
        self.has_cmi = ipc > 1

    def ours(self, **options: Any) -> DM:
        """Our loop, as published but for `options`."""
        options |= {"network": self.sizes.network, "batch_real": self.sizes.batch_real}
        return DM(self.dataset, self.labels, DMOptions(**options), _SEED, self.device)

    def plain(self) -> PlainDM:
        """The plain loop."""
        options = DMOptions(self.sizes.network, self.sizes.batch_real)
        cmi = PlainCMI(self.files, self.sizes.bank, _WEIGHT, self.regularizer.draw)
        return PlainDM(self.dataset, self.labels, options, _SEED, self.device, cmi=cmi)

    def update(self, gradient: Tensor) -> None:
        """The end of a step."""
        self.images.grad = gradient
        self.optimizer.step()


def our_parts(setup: Setup, **options: Any) -> dict[str, Run]:
    """Those of our loop under options of DM; a step gives its loss and gradient."""
    loop, images, labels = setup.ours(**options), setup.images, setup.labels
    classes = ClassIndex(labels.to(setup.device), setup.sizes.classes)
    real, real_labels = loop.real_batch(0)
    counts = real_labels.bincount().tolist()
    loop.draw_network(0)
    targets = loop.real_means(real, counts)

    def step(iteration: int) -> tuple[Tensor, Tensor]:
        loss, gradient = loop.step(images, iteration)
        if setup.has_cmi:
            value = setup.regularizer(images, classes, step=iteration)
            gradient += torch.autograd.grad(value, images)[0]
            loss = loss + value.detach()
        setup.update(gradient)
        return loss, gradient

    def augmentation(iteration: int) -> object:
        drawn = draw(loop.strategy, len(counts), generator(_SEED, "dsa", iteration))
        changed = [augment(real, loop.strategy, drawn, real_labels)]
        for _, rows in loop.chunks:
            x = images.detach()[rows].requires_grad_()
            y = augment(x, loop.strategy, drawn, labels[rows])
            changed += torch.autograd.grad(y, x, x.detach())
        return changed

    def regularize(iteration: int) -> object:
        return torch.autograd.grad(setup.regularizer(images, classes, step=iteration), images)

    parts: dict[str, Run] = {
        STEP: step,
        NETWORKS: loop.draw_network,
        REAL_BATCH: loop.real_batch,
        AUGMENTATION: augmentation,
        REAL: lambda _: loop.real_means(real, counts),
        SYNTHETIC: lambda _: loop.match(images, targets, lambda x, _: x),
        OPTIMISER: lambda _: setup.optimizer.step(),
    }
    return parts | ({REGULARISER: regularize} if setup.has_cmi else {})


def plain_parts(setup: Setup) -> dict[str, Run]:
    """Those of the plain loop; a step gives its loss and gradient."""
    loop, images = setup.plain(), setup.images
    real = loop.real_batches(0)
    network, trained = loop.new_network(0), loop.trained_network(0)
    targets = [network.embed(of_class).mean(dim=0) for of_class in real]

    def step(iteration: int) -> tuple[Tensor, Tensor]:
        loss, value, gradient = loop.step(images, iteration)
        setup.update(gradient)
        return loss + value, gradient

    def augmentation(iteration: int) -> object:
        drawn = loop.draw(iteration)
        changed, kept = [], []
        for c, rows in enumerate(loop.classes):
            kept.append(augmented(real[c], loop.strategy, drawn, c))
            changed.append(augmented(images[rows], loop.strategy, drawn, c))
        given = [images.detach()[rows] for rows in loop.classes]
        return kept, torch.autograd.grad(changed, images, given)

    def match(_: int) -> object:
        means = [network.embed(images[rows]).mean(dim=0) for rows in loop.classes]
        loss = sum((t - m).square().sum() for t, m in zip(targets, means, strict=True))
        return torch.autograd.grad(cast(Tensor, loss), images)

    return {
        STEP: step,
        NETWORKS: lambda iteration: (
            loop.new_network(iteration),
            loop.trained_network(iteration),
        ),
        REAL_BATCH: loop.real_batches,
        AUGMENTATION: augmentation,
        REAL: lambda _: [network.embed(of_class).mean(dim=0) for of_class in real],
        SYNTHETIC: match,
        REGULARISER: lambda _: torch.autograd.grad(loop.weighted_cmi(trained, images), images),
        OPTIMISER: lambda _: setup.optimizer.step(),
    }


def convolution_parts(setup: Setup) -> dict[str, Run]:
    """The convolutions of our float32 loop, on tensors already there, part by part."""
    loop = setup.ours()
    loop.draw_network(0)
    counts = loop.counts
    count = setup.sizes.classes * setup.sizes.batch_real
    of_real = [min(loop.chunk, count - first) for first in range(0, count, loop.chunk)]
    of_synthetic = _images_in(counts, loop.chunk)
    images = setup.images.detach()
    placed = images.contiguous(memory_format=loop.layout(images.dtype))
    parts = {
        REAL: _convolutions(loop.network, placed, of_real, backward=False),
        SYNTHETIC: _convolutions(loop.network, placed, of_synthetic, backward=True),
    }
    if setup.has_cmi:
        chunk_size = setup.regularizer.chunk_size
        assert chunk_size is not None
        trained, sizes = setup.regularizer.networks[0], _images_in(counts, chunk_size)
        parts[REGULARISER] = _convolutions(cast(Network, trained), images, sizes, backward=True)
    branches = list(parts.values())
    return {STEP: lambda iteration: [run(iteration) for run in branches], **parts}


def _images_in(counts: list[int], chunk: int) -> list[int]:
    return [rows.stop - rows.start for _, rows in whole_classes(counts, chunk)]


def _convolutions(network: Network, images: Tensor, sizes: list[int], *, backward: bool) -> Run:
    """Those of an embedding of batches of such sizes, of images like `images`."""
    calls = {size: _calls_of(network, images, size) for size in set(sizes)}

    def run(_: int) -> None:
        for size in sizes:
            for layer, x, of_output in calls[size]:
                weight, stride, padding = layer.weight, layer.stride, layer.padding
                F.conv2d(x, weight, layer.bias, stride, padding)
                if backward:
                    torch.ops.aten.convolution_backward(
                        of_output, x, weight, None, stride, padding, layer.dilation,
                        False, [0, 0], 1, [True, False, False],
                    )  # fmt: skip

    return run


def _calls_of(
    network: Network, images: Tensor, size: int
) -> list[tuple[nn.Conv2d, Tensor, Tensor]]:
    """Each convolution of one batch, with its input and a derivative of its output."""
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, of_output = inputs[0].clone(), output.clone()
        calls.append((cast(nn.Conv2d, layer), x, of_output))

    batch = images[torch.arange(size, device=images.device) % len(images)]
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        network.embed(batch)
    for handle in handles:
        handle.remove()
    return calls
