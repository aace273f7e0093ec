"""What the plain loops share but that of MTT: a class at a time, each with real images."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from bench.plain.cmi import PlainCMI
from bench.plain.networks import PlainNetwork, convnet, made
from cmidd.augment import Draw, Strategy
from cmidd.datasets import Dataset
from cmidd.methods.class_draws import draw_for_classes, draw_real_rows
from cmidd.networks import initialize
from cmidd.options.dc import DCOptions
from cmidd.options.dm import DMOptions
from cmidd.options.idc import IDCOptions
from cmidd.options.ncfm import NCFMOptions
from cmidd.seeds import generator


class ClasswiseLoop:
    """A dataset and a method's options, with what a step draws of them."""

    options: Any

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: DMOptions | DCOptions | IDCOptions | NCFMOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        cmi: PlainCMI | None = None,
    ) -> None:
        """Prepare steps on images whose labels are `labels`, ascending."""
        self.dataset, self.options, self.seed = dataset, options, seed
        self.device, self.dtype, self.cmi = device, dtype, cmi
        self.labels = labels.to(device)
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        self.real = dataset.to_input(dataset.train.images.to(device), dtype)
        ends = torch.bincount(labels.cpu()).cumsum(0).tolist()
        self.classes = [slice(a, b) for a, b in itertools.pairwise([0, *ends])]

    def new_network(self, iteration: int) -> PlainNetwork:
        """The random network of an iteration."""
        channels, size, _ = self.dataset.shape
        # Made without numbers: `initialize` gives them, and once is what the published loop pays.
        with torch.device("meta"):
            network = made(convnet, self.options.network, channels, size, self.dataset.num_classes)
        network.to_empty(device="cpu")
        initialize(network, generator(self.seed, "network", iteration))
        return network.to(self.device, self.dtype)

    def real_batches(self, *step: int) -> list[Tensor]:
        """Normalised real images of each class; `step` is the iteration and, if any, the update."""
        count = self.options.batch_real
        rows = draw_real_rows(
            self.dataset.train, range(self.dataset.num_classes), count, self.seed, "real", *step
        )
        return [self.real[of_class.to(self.device)] for of_class in rows]

    def augmentation(self, *step: int) -> Draw:
        """What is drawn to change the images of each class."""
        return draw_for_classes(
            self.strategy, range(self.dataset.num_classes), self.seed, "dsa", *step
        )
