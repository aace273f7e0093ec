"""Class-positive InfoNCE of a run: what it adds to every step.

    gradient <- gradient + d (weight x sum over layers of InfoNCE) / d images

Synthetic images, as networks see them, are the queries; real images of all classes, drawn for every
update, are the keys, by features of the same layers of one network. It is the method's network with
fresh weights, or one of a bank, drawn for every update too. Nothing is augmented.

All ranks draw and encode the same real images, and each compares with them the synthetic images of
its classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.datasets.streamed import one_after_another
from cmidd.methods.base import Method
from cmidd.methods.class_draws import draw_real_rows
from cmidd.networks import (
    GPU_IMAGES_FORWARD,
    Network,
    build_network,
    check_images_are_independent,
    freeze,
    images_per_chunk,
    initialize,
)
from cmidd.options.infonce import InfoNCEOptions
from cmidd.pretrained.bank import Bank
from cmidd.seeds import generator
from cmidd.term import Term
from cmikernels.embedding import embed_each
from cmikernels.infonce import PreparedKeys, check_temperature, compare
from cmikernels.precision import computing


class InfoNCETerm(Term):
    """What InfoNCE adds to the steps of one run; nothing where its weight is 0."""

    name = "mim"

    def __init__(
        self,
        options: InfoNCEOptions,
        dataset: Dataset,
        images: Tensor,
        labels: Tensor,
        method: Method,
        seed: int,
        *,
        precision: str,
    ) -> None:
        """Make the network, or open the bank.

        Args:
            options: of InfoNCE.
            dataset: the real images.
            images: the stored images, on the device where networks are to run.
            labels: of the stored images.
            method: whose network, view and first batch it takes.
            seed: of the draws.
            precision: of the networks.
        """
        super().__init__(dataset, images, labels, method, options.mim_on)
        options.check()
        check_temperature("mim_temperature", options.mim_temperature)
        self._options, self._seed, self._precision = options, seed, precision
        if not options.mim_weight:
            return
        self.check_batch()
        self.weight = options.mim_weight
        self._networks, self._dtype = self._networks_for(images), images.dtype
        self._chunk = images_per_chunk(images.device, dataset.shape.height, GPU_IMAGES_FORWARD)
        with torch.no_grad():
            seen, _ = self.seen(images[:1], self._labels[:1])
            self._stored = max(1, self._chunk // len(seen))  # images that make a chunk
            self._check_layers(seen)

    def _networks_for(self, images: Tensor) -> Sequence[Network]:
        """The bank, or the network that takes fresh weights, where images are."""
        dataset, path, spec = self._dataset, self._options.mim_bank, self._method.network_spec
        if path is not None:
            bank = Bank.load_for(dataset, path, "mim_bank", images.device)
            self.input_records["mim_bank"] = bank.record
            return bank
        channels, size, _ = dataset.shape
        network = build_network(spec, channels, size, dataset.num_classes)
        try:
            check_images_are_independent(network, spec)
        except ValueError as error:
            raise ValueError(f"mim_weight: {error}, or give mim_bank") from None
        return [freeze(network.to(images.device))]

    def _network(self, number: int) -> Network:
        return self._networks[number].to(self._dtype)

    def _check_layers(self, images: Tensor) -> None:
        try:
            embed_each(self._network(0), images, self._options.mim_layers, self._precision)
        except ValueError as error:
            text = str(error).removeprefix("layer: ")
            raise ValueError(f"mim_layers: {text}") from None

    def draw(self, iteration: int, update: int) -> tuple[Network, Tensor]:
        """The network of an update, and row numbers of real images, class by class."""
        numbers = generator(self._seed, "mim network", iteration, update)
        if self._options.mim_bank is None:
            network = self._network(0)
            initialize(network, numbers)
        else:
            drawn = torch.randint(len(self._networks), (), generator=numbers)
            network = self._network(int(drawn))
        train, classes = self._dataset.train, range(self._dataset.num_classes)
        count, words = self._options.mim_batch_real, (self._seed, "mim real", iteration, update)
        return network, torch.cat(draw_real_rows(train, classes, count, *words))

    @torch.no_grad()
    def keys(self, network: Network, rows: Tensor) -> list[PreparedKeys]:
        """Features of real images at each layer, `(R, M)`, with their classes."""
        weight, parts = network.head.weight, []
        source = self._dataset.train.source
        for pixels in one_after_another(source, torch.split(rows, self._chunk)):
            x = self._dataset.to_input(pixels.to(weight.device), weight.dtype)
            parts.append(embed_each(network, x, self._options.mim_layers, self._precision))
        labels = self._dataset.train.labels[rows].to(weight.device)
        return [PreparedKeys.of(torch.cat(each), labels) for each in zip(*parts, strict=True)]

    def add(
        self,
        images: Tensor,
        gradient: Tensor,
        iteration: int,
        update: int = 0,
        *,
        logged: bool,  # noqa: ARG002
    ) -> Tensor:
        """Add to the gradient; the weighted value, both this rank's shares: see `Term.add`."""
        total = torch.zeros((), device=images.device, dtype=images.dtype)
        if not self.weight:
            return total
        mine, of_all = self.rows_of(iteration)
        if not len(mine):
            return total
        options = self._options
        with computing(self._precision, images.device.type):
            network, rows = self.draw(iteration, update)
            keys = self.keys(network, rows)
            for some in torch.split(mine, self._stored):
                x = images.detach()[some].requires_grad_()
                seen, labels = self.seen(x, self._labels[some])
                queries = embed_each(network, seen, options.mim_layers, self._precision)
                losses = [
                    compare(q, labels, k, options.mim_temperature)
                    for q, k in zip(queries, keys, strict=True)
                ]
                value = self.weight_of_mean * len(some) / of_all * torch.stack(losses).sum()
                gradient[some] += torch.autograd.grad(value, x)[0]
                total += value.detach()
        return total
