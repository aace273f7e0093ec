"""DM, distribution matching (Zhao and Bilen, WACV 2023): one step.

    loss = sum over classes of || mean phi(A_c(real)) - mean phi(A_c(synthetic)) ||^2

phi is the embedding of a network with fresh random weights in every iteration, A_c one augmentation
drawn for the class and used on both sides. Classes go through the network together, in chunks that
suit a CPU; a GPU takes all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from cmidd.augment import Draw, Strategy, Turn, change, changes_of
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.device import precision_on
from cmidd.methods.base import CMIWeights, Method, MethodEntry, Published, origin_on
from cmidd.methods.class_draws import (
    ClassShare,
    class_means,
    draw_for_classes,
    draw_real_rows,
    whole_classes,
)
from cmidd.networks import (
    GPU_IMAGES_FORWARD,
    Network,
    build_network,
    check_images_are_independent,
    draw_weights,
    freeze,
    images_per_chunk,
)
from cmidd.networks.usual import usual_network
from cmidd.options.dm import DMOptions
from cmidd.options.fields import check_filled_in
from cmidd.parcel import sent
from cmidd.seeds import generator
from cmikernels.precision import computing

# Of the real branch, which has no gradient: its convolutions are a quarter faster so, and what lies
# between them keeps the layout. bfloat16 convolutions are slower so.
_LAYOUT = {("cpu", torch.float32): torch.channels_last}


def layout_on(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """How images lie in memory for a network."""
    return _LAYOUT.get((device.type, dtype), torch.contiguous_format)


@dataclass(frozen=True, eq=False)
class DMDraws:
    """What DM draws for an iteration."""

    weights: dict[str, Tensor]  # of the network
    real: list[Tensor]  # row numbers of the real images of each class
    augmentation: Draw  # of each class


class RealChunk(NamedTuple):
    """Real images that go through the network together."""

    rows: Tensor  # among those of the rank's classes
    changes: list[Turn]


@dataclass(frozen=True, eq=False)
class DMPlan:
    """The same as the device takes it."""

    weights: Mapping[str, Tensor]
    real: list[RealChunk]  # class by class
    synthetic: list[list[Turn]]  # changes of what the network sees of the images of each chunk


class DM(Method):
    """The step of DM on one dataset, of the classes that are this rank's."""

    shares_work = True
    seen_of_stored: int = 1
    """Images that the network sees of each stored one."""

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: DMOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare steps on images whose labels are `labels`, ascending."""
        check_filled_in(options)
        channels, size, _ = dataset.shape
        self.dataset, self.options, self.seed = dataset, options, seed
        self.device, self.dtype = device, dtype
        self.precision = precision_on(device, options.precision)
        self.strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)
        self.share = ClassShare.of(dataset, labels)
        self.counts = [count * self.seen_of_stored for count in self.share.counts]  # seen
        self.chunk = images_per_chunk(device, size, GPU_IMAGES_FORWARD)
        self.chunks = whole_classes(self.share.counts, self.chunk // self.seen_of_stored)
        self.images = self.real_images()
        self.network_spec = options.network
        network = build_network(options.network, channels, size, dataset.num_classes)
        self.network = self.placed(network, dtype)
        check_images_are_independent(self.network, options.network)
        self.real_dtype = dtype if options.real_dtype == "float32" else torch.bfloat16
        self.real_network = self.network
        if self.real_dtype != dtype:
            network = build_network(options.network, channels, size, dataset.num_classes)
            self.real_network = self.placed(network, self.real_dtype)
        self.embed_real: Callable[[Tensor], Tensor] = self.real_network.embed
        if options.compile:
            self.embed_real = torch.compile(self.real_network.embed, dynamic=False)

    def real_images(self) -> Images:
        """Those of the rank's classes, on the device."""
        return self.share.real_images(self.dataset.train, self.device)

    def draw(self, iteration: int, update: int) -> DMDraws:  # noqa: ARG002
        """The network, real images and augmentations of an iteration."""
        weights = draw_weights(self.network, generator(self.seed, "network", iteration))
        return DMDraws(weights, *self.draw_images(iteration))

    def draw_images(self, iteration: int) -> tuple[list[Tensor], Draw]:
        """The real images and augmentations of an iteration."""
        seed, classes = self.seed, self.share.classes
        count = self.options.batch_real
        return (
            draw_real_rows(self.dataset.train, classes, count, seed, "real", iteration),
            draw_for_classes(self.strategy, classes, seed, "dsa", iteration),
        )

    def loss_and_gradient(self, images: Tensor, draws: DMDraws) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the synthetic images, `(N, ch, H, W)`."""
        with computing(self.precision, self.device.type):
            return self._loss_and_gradient(images, draws)

    def _loss_and_gradient(self, images: Tensor, draws: DMDraws) -> tuple[Tensor, Tensor]:
        with record_function("dm.network"):
            plan = self.plan(draws)
            self.load_network(plan.weights)
        targets = self.real_statistics(plan.real, [len(rows) for rows in draws.real])
        with record_function("dm.synthetic_branch"):
            mine = images.detach()[self.share.rows]
            loss, gradient = self.match(mine, targets, plan.synthetic)
        return loss, self.share.whole(gradient, images)

    def plan(self, draws: DMDraws) -> DMPlan:
        """What was drawn as the device takes it, where it is then."""
        share, like = self.share, (self.dataset.shape[1:], self.dtype, self.device)
        changes = partial(changes_of, self.strategy, draws.augmentation)
        seen, real = share.labels - share.classes.start, []
        for rows in torch.split(torch.cat(draws.real), self.chunk):
            places = self.dataset.train.labels[rows] - share.classes.start
            real.append(RealChunk(rows - share.first_real, changes(places, *like)))
        synthetic = [
            changes(seen[rows].repeat_interleave(self.seen_of_stored), *like)
            for _, rows in self.chunks
        ]
        there = sent(DMPlan(draws.weights, real, synthetic), self.device)
        if isinstance(self.images, Tensor):
            return there
        pairs = zip(there.real, real, strict=True)
        return replace(there, real=[each._replace(rows=here.rows) for each, here in pairs])

    def placed(self, network: Network, dtype: torch.dtype) -> Network:
        """The network frozen, on the device, in the layout that is fast there."""
        freeze(network.to(self.device, dtype))
        return network.to(memory_format=layout_on(self.device, dtype))  # type: ignore[call-overload, no-any-return]

    def as_network(self) -> AbstractContextManager[None]:
        """Around a forward of a network."""
        return computing(self.precision, self.device.type, network=True)

    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network the weights of an iteration."""
        self.network.load_state_dict(weights)
        if self.real_network is not self.network:
            self.real_network.load_state_dict(weights)

    def real_batch(self, chunk: RealChunk) -> Tensor:
        """Normalised and augmented real images, as the network takes them."""
        real = self.dataset.to_input(self.images[chunk.rows], self.dtype)
        layout = layout_on(self.device, self.real_dtype)
        return change(real, chunk.changes).to(self.real_dtype, memory_format=layout)

    def statistics(self, features: Tensor, counts: list[int]) -> list[Tensor]:
        """What is matched of embeddings `(N, M)` that stand class by class, each `(C, ...)`."""
        return [class_means(features, counts)]

    def loss_of(self, seen: Tensor, targets: list[Tensor], classes: slice) -> Tensor:
        """Loss of augmented images `seen` of whole classes, whose real images have `targets`."""
        with self.as_network():
            features = self.network.embed(seen)
        return self.loss_of_features(features.to(seen.dtype), targets, classes)

    def loss_of_features(self, features: Tensor, targets: list[Tensor], classes: slice) -> Tensor:
        """The same of their embeddings `(N, M)`."""
        found = self.statistics(features, self.counts[classes])
        distances = [(t - f).square().sum() for t, f in zip(targets, found, strict=True)]
        return torch.stack(distances).sum()

    @torch.no_grad()
    def real_statistics(self, real: list[RealChunk], counts: list[int]) -> list[Tensor]:
        """Those of the real images of each class, of which there are so many."""
        features = []
        for chunk in real:
            with record_function("dm.real_images"):
                part = self.real_batch(chunk)
            # A compiled embedding is made for full chunks; another size would compile again.
            full = len(part) == len(real[0].rows)
            embed = self.embed_real if full else self.real_network.embed
            with record_function("dm.real_branch"), self.as_network():
                features.append(embed(part))
        with record_function("dm.real_branch"):
            return self.statistics(torch.cat(features).to(self.dtype), counts)

    def match(
        self,
        images: Tensor,
        targets: list[Tensor],
        changes: list[list[Turn]],
    ) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the rank's images, in chunks of whole classes."""
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for (classes, rows), turns in zip(self.chunks, changes, strict=True):
            x = images[rows].requires_grad_()
            seen = x if self.view is None else self.view(x, self.share.labels[rows])[0]
            seen = change(seen, turns).contiguous(memory_format=layout_on(self.device, x.dtype))
            loss = self.loss_of(seen, [t[classes] for t in targets], classes)
            losses.append(loss.detach())
            gradients += torch.autograd.grad(loss, x)
        return torch.stack(losses).sum(), torch.cat(gradients)


def published(dataset: Dataset, ipc: int) -> Published:
    """Settings of DM; how often it writes is ours, for the length of its iterations."""
    return Published(
        loop={
            "iterations": 20000,
            "init": "real",
            "lr_images": 10.0 if ipc >= 100 else 1.0,
            "report_every": 10,
            "checkpoint_every": 500,
        },
        options={"network": usual_network(dataset.shape.height)},
        origin=origin_on(dataset, "DM's"),
    )


# The weights for digits and Fashion-MNIST are the best of five and of four at 10 images per class;
# 50 was not swept.
DM_ENTRY = MethodEntry(
    DM,
    DMOptions,
    published,
    CMIWeights(
        published={"svhn": (18000, 500), "cifar10": (8000, 2000), "cifar100": (2000, 500)},
        ours={"digits": (1, 1), "fashionmnist": (2000, 2000)},
    ),
)
