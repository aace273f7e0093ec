"""What the loops of all methods work on, and the convolutions that no loop can do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain.dm import PlainCMI, PlainDM
from bench.plain.inputs import random_dataset, save_each, untrained_bank
from cmidd.methods.dm import DMOptions
from cmidd.networks import Network
from cmidd.regularization import CMIOptions
from cmidd.seeds import generator
from cmikernels import ClassIndex, CMIRegularizer

PLAIN, OURS, CONVOLUTIONS = "plain", "ours", "convolutions"
SEED = 0

_WEIGHT = 2000.0  # of CMI, as published for CIFAR-10 at ipc 50

Run = Callable[[int], object]
"""A part of an iteration, with the iteration's number."""
Loops = dict[str, dict[str, Run]]
"""Parts by name, of every loop by name."""
Result = tuple[Tensor, Tensor]
"""A loss and its gradient with respect to the images."""


@dataclass(frozen=True)
class Sizes:
    """How large the loop is; the default is that of most published results."""

    classes: int = 10
    batch_real: int = 256
    pixels: int = 32
    network: str = "convnet"
    bank: str = "resnet18"
    student_steps: int = 5  # of MTT, in what is timed
    peaks: tuple[int, ...] = (1, 5, 10, 50)  # those whose memory is measured


class Setup:
    """What all loops work on; the plain ones' files are written into `folder`."""

    def __init__(self, sizes: Sizes, ipc: int, device: torch.device, folder: Path) -> None:
        self.sizes, self.ipc, self.device, self.folder = sizes, ipc, device, folder
        self.dataset = random_dataset([2 * sizes.batch_real] * sizes.classes, sizes.pixels)
        self.labels = torch.arange(sizes.classes).repeat_interleave(ipc)
        shape = (len(self.labels), *self.dataset.shape)
        self.images = torch.randn(shape, generator=generator("images")).to(device)
        self.images.requires_grad_()
        self.images.grad = torch.ones_like(self.images)
        # A step of length 0 takes as long as another, and all rounds see the same images.
        self.optimizer = torch.optim.SGD([self.images], lr=0.0, momentum=0.5)
        self.has_cmi = ipc > 1

    @cached_property
    def regularizer(self) -> CMIRegularizer:
        """CMI as our loops take it."""
        bank = [network.to(self.device) for network in self._bank()]
        return CMIRegularizer(bank, _WEIGHT, chunk_size=CMIOptions().cmi_chunk, seed=SEED)

    @cached_property
    def plain_dm(self) -> PlainDM:
        """The plain loop of DM; those of other methods take CMI from it."""
        files = save_each(self._bank(), self.folder)
        cmi = PlainCMI(files, self.sizes.bank, _WEIGHT, self.regularizer.draw)
        options = DMOptions(self.sizes.network, self.sizes.batch_real)
        return PlainDM(self.dataset, self.labels, options, SEED, self.device, cmi=cmi)

    def cmi(self, iteration: int) -> Result:
        """Weighted CMI and its gradient, as our loops take them."""
        value = self.regularizer(self.images, self._classes, step=iteration)
        return value.detach(), torch.autograd.grad(value, self.images)[0]

    def update(
        self, loss: Tensor, gradient: Tensor, cmi: Callable[[int], Result], iteration: int
    ) -> Result:
        """The end of an update: CMI is added where there is any, and the images make a step."""
        if self.has_cmi:
            value, of_images = cmi(iteration)
            loss = loss + value
            gradient += of_images
        self.step(gradient)
        return loss, gradient

    def step(self, gradient: Tensor) -> None:
        """The step of the images."""
        self.images.grad = gradient
        self.optimizer.step()

    @cached_property
    def _classes(self) -> ClassIndex:
        return ClassIndex(self.labels.to(self.device), self.sizes.classes)

    def _bank(self) -> list[Network]:
        return untrained_bank(self.sizes.bank, self.sizes.pixels, self.sizes.classes)


def batches(count: int, size: int) -> list[int]:
    """How `count` is cut into batches."""
    return [min(size, count - first) for first in range(0, count, size)]


def convolutions(network: Network, images: Tensor, sizes: Sequence[int], backward: str = "") -> Run:
    """Those of an embedding of batches of such sizes, of images like `images`.

    `backward` is what they are differentiated by: nothing, images or weights.
    """
    calls = {size: _calls_of(network, images, size) for size in set(sizes)}

    @torch.no_grad()
    def run(_: int) -> None:
        for size in sizes:
            for number, (layer, x, of_output) in enumerate(calls[size]):
                weight, stride, padding = layer.weight, layer.stride, layer.padding
                F.conv2d(x, weight, layer.bias, stride, padding)
                if backward:
                    # On the way to weights the first layer's input needs no derivative.
                    wanted = [backward == "images" or number > 0, backward == "weights", False]
                    torch.ops.aten.convolution_backward(
                        of_output, x, weight, None, stride, padding, layer.dilation,
                        False, [0, 0], 1, wanted,
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
