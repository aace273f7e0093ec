"""IID as its published loops are structured, written anew in plain torch: oracle and rival.

    loss = DM's + a sum of || K(A_c(real)) - K(A_c(synthetic)) ||^2
                + b sum over images of || g(A_c(image)) - mean g of its class ||^2

As in `dm.py` everything is made where it is needed: phi is a new module in every step, the weights
of g are read from their own file, classes come one at a time, their covariances are means of one
product for each image, distances to the centre add up image by image, and one backward pass,
through CMI too, ends the step. On IDM its own loop has the same terms. What is drawn is what
`cmidd.methods.iid` draws, so that in float64 both give the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from bench.plain.classwise import ClasswiseLoop
from bench.plain.cmi import trained_network
from bench.plain.dm import augmented
from bench.plain.idm import Member, PlainIDM
from bench.plain.inputs import save_each
from bench.plain.networks import PlainNetwork
from cmidd.options.iid import IIDOptions
from cmidd.pretrained.bank import Bank
from cmidd.seeds import generator


def covariance(maps: Tensor) -> Tensor:
    """Of the channels of maps `(n, channels, positions)`."""
    away = maps - maps.mean(dim=0, keepdim=True)
    return torch.matmul(away, away.transpose(1, 2)).mean(dim=0)


def centralisation(features: Tensor, weight: float) -> Tensor:
    """The weighted distances of features `(n, M)` to their mean, one after another."""
    found = torch.zeros((), dtype=features.dtype, device=features.device)
    centre = features.mean(dim=0)
    for feature in features:
        found = found + weight * (feature - centre).square().sum()
    return found


class WithBank(ClasswiseLoop):
    """A loop that has a trained network in every iteration."""

    options: IIDOptions

    def __init__(self, *given: Any, **more: Any) -> None:
        """Prepare steps, with a file beside the bank for each of its networks."""
        super().__init__(*given, **more)
        assert self.options.centre_bank is not None
        bank = Bank.load(self.options.centre_bank, "cpu")
        self.bank_network = bank.record["network"]
        folder = self.options.centre_bank.with_suffix(".each")
        folder.mkdir(exist_ok=True)
        self.files = save_each(bank, folder)

    def trained(self, images: Tensor, iteration: int) -> PlainNetwork:
        """The trained network of an iteration, for such images."""
        draws = generator(self.seed, "centre", iteration)
        file = self.files[int(torch.randint(len(self.files), (), generator=draws))]
        return trained_network(file, self.bank_network, images, len(self.classes))


class PlainIID(WithBank):
    """The step on one dataset; arguments as of `cmidd.methods.iid.IID`, and the regulariser."""

    def step(self, images: Tensor, iteration: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of IID, weighted CMI, and the gradient of their sum."""
        images = images.detach().requires_grad_()
        with record_function("dm.network"):
            network = self.new_network(iteration).requires_grad_(False)
            trained = self.trained(images, iteration)
        with record_function("dm.real_images"):
            drawn = self.augmentation(iteration)
            real_batches = self.real_batches(iteration)
        means, covariances, centres = torch.zeros(3, dtype=self.dtype, device=self.device)
        for c, real in enumerate(real_batches):
            with record_function("dm.real_images"):
                real = augmented(real, self.strategy, drawn, c)
            with record_function("dm.real_branch"):
                of_real = network.features(real).flatten(2).detach()
                target, target_covariance = of_real.mean(dim=0), covariance(of_real)
            with record_function("dm.synthetic_branch"):
                synthetic = augmented(images[self.classes[c]], self.strategy, drawn, c)
                maps = network.features(synthetic).flatten(2)
                apart = (target_covariance - covariance(maps)).square().sum()
                covariances = covariances + self.options.covariance_weight * apart
                features = trained.embed(synthetic)
                centres = centres + centralisation(features, self.options.centre_weight)
                means = means + (target - maps.mean(dim=0)).square().sum()
        loss = covariances + means + centres
        value = torch.zeros_like(loss)
        if self.cmi is not None:
            with record_function("cmi"):
                value = self.cmi.weighted(images, self.classes, iteration)
        with record_function("backward"):  # of the synthetic branch and of CMI
            (gradient,) = torch.autograd.grad(loss + value, images)
        return loss.detach(), value.detach(), gradient


class PlainIIDOnIDM(WithBank, PlainIDM):
    """The step on one dataset; arguments as of `cmidd.methods.iid.IIDOnIDM`."""

    def prepare(self, images: Tensor, iteration: int) -> Member:
        """IDM's, and the trained network."""
        self.centre_network = self.trained(images, iteration)
        return super().prepare(images, iteration)

    def relations(self, network: PlainNetwork, real: Tensor, synthetic: Tensor) -> Tensor:
        """Both terms of a class."""
        with torch.no_grad():
            target = covariance(network.features(real).flatten(2))
        found = covariance(network.features(synthetic).flatten(2))
        apart = self.options.covariance_weight * (target - found).square().sum()
        features = self.centre_network.embed(synthetic)
        return apart + centralisation(features, self.options.centre_weight)
