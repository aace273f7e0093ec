"""NCFM as its published loop is structured, written anew in plain torch: oracle and rival.

    distance = w mean over t of sqrt(a (|p| - |q|)^2 + b 2 (|p| |q| - Re p q*))

Three modules are made once: in every step two are given the weights of two files, and the third
weights between. A loop over classes matches, with frequencies for each, its real images in one
batch and a backward of its own; a second loop calibrates, with another backward for each class.
Stored images are pixels, whose cells are cut and enlarged one at a time, in each loop anew.

What differs from the published loop is what `cmidd.methods.ncfm` draws and when images move: the
frequencies are the same for all classes, both loops augment alike, and the images stay where they
are until the end. So in float64 both give the same up to rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from bench.plain.classwise import ClasswiseLoop
from bench.plain.dm import augmented
from bench.plain.idc import decoded
from bench.plain.networks import PlainNetwork, convnet, made
from cmidd.options.ncfm import NCFMOptions
from cmidd.pretrained.bank import Bank
from cmidd.seeds import generator


def function_of(features: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the characteristic function at frequencies `t`."""
    angles = torch.matmul(t, F.normalize(features, dim=1).transpose(0, 1))
    return torch.cos(angles).mean(dim=1), torch.sin(angles).mean(dim=1)


def distance(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor], a: float, b: float) -> Tensor:
    """Of two characteristic functions, as published."""
    of_p, of_q = ((real**2 + imaginary**2).sqrt() for real, imaginary in (p, q))
    phase = 2 * (of_p * of_q - p[0] * q[0] - p[1] * q[1])
    return (a * (of_p - of_q) ** 2 + b * phase.clamp(min=1e-12)).sqrt().mean()


class PlainNCFM(ClasswiseLoop):
    """The step on one dataset; arguments as of `cmidd.methods.ncfm.NCFM`."""

    options: NCFMOptions

    def __init__(self, *given: Any, **more: Any) -> None:
        """Prepare steps, with two files beside the bank for each of its networks."""
        super().__init__(*given, **more)
        bank = Bank.load(self.options.matching_bank, "cpu")
        self.network = bank.record["network"]
        folder = self.options.matching_bank.with_suffix(".pairs")
        folder.mkdir(exist_ok=True)
        self.pairs: list[tuple[Path, Path]] = []
        for number in range(len(bank)):
            first, last = (folder / f"{number}.{which}.pt" for which in ("first", "last"))
            torch.save(bank.first_weights(number), first)
            torch.save(bank[number].state_dict(), last)
            self.pairs.append((first, last))
        self.first, self.between, self.last = (self.a_network() for _ in range(3))

    def networks(self, iteration: int) -> tuple[PlainNetwork, PlainNetwork]:
        """The one between first and last weights, and the one with the last."""
        draws = generator(self.seed, "pair", iteration)
        pair = self.pairs[int(torch.randint(len(self.pairs), (), generator=draws))]
        share = float(torch.rand((), dtype=torch.float64, generator=draws))
        for network, file in zip((self.first, self.last), pair, strict=True):
            found = network.load_state_dict(torch.load(file, weights_only=True), strict=False)
            # Of convolutions before instance norm, which takes it away.
            assert all(name.endswith("bias") for name in found.missing_keys)
            assert not found.unexpected_keys
        weights = (each.parameters() for each in (self.between, self.first, self.last))
        for between, first, last in zip(*weights, strict=True):
            between.copy_(share * first + (1 - share) * last)
        return self.between, self.last

    def a_network(self) -> PlainNetwork:
        """A network, frozen."""
        channels, size, _ = self.dataset.shape
        with torch.random.fork_rng(devices=[]):
            network = made(convnet, self.network, channels, size, self.dataset.num_classes)
        return network.to(self.device, self.dtype).requires_grad_(False)

    def step(self, images: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Loss, and its gradient by images that are stored as `cmidd` stores them."""
        images, options = images.detach().requires_grad_(), self.options
        with record_function("ncfm.network"):
            network, last = self.networks(iteration)
        with record_function("ncfm.real_images"):
            drawn, real_batches = self.augmentation(iteration), self.real_batches(iteration)
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for c, real in enumerate(real_batches):
            with record_function("ncfm.real_images"):
                real = augmented(real, self.strategy, drawn, c)
            with record_function("ncfm.real_branch"):
                of_real = network.embed(real).detach()
                t = torch.randn(
                    (options.frequencies, of_real.shape[1]),
                    generator=generator(self.seed, "frequencies", iteration),
                ).to(self.device, self.dtype)
                target = function_of(of_real, t)
            with record_function("ncfm.synthetic_branch"):
                found = function_of(network.embed(self.seen(images, drawn, c)), t)
                weights = options.amplitude_weight, options.phase_weight
                loss = options.distance_weight * distance(target, found, *weights)
            with record_function("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        for c in range(len(self.classes)):
            with record_function("ncfm.synthetic_branch"):
                logits = last.head(last.embed(self.seen(images, drawn, c)))
                labels = torch.full((len(logits),), c, device=self.device)
                loss = options.calibration_weight * F.cross_entropy(logits, labels)
            with record_function("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        assert images.grad is not None
        return total, images.grad

    def seen(self, images: Tensor, drawn: Any, c: int) -> Tensor:
        """What networks see of the stored images of class `c`."""
        mean, std = (
            torch.tensor(numbers, dtype=self.dtype, device=self.device).view(-1, 1, 1)
            for numbers in (self.dataset.mean, self.dataset.std)
        )
        pixels = images[self.classes[c]] * std + mean
        cells = [cell for image in pixels for cell in decoded(image, self.options.factor)]
        return augmented((torch.stack(cells) - mean) / std, self.strategy, drawn, c)
