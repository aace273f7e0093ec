"""IDM, improved distribution matching (Zhao et al., CVPR 2023), on DM: one step.

    loss = sum over classes of  || mean phi(A_c(real)) - mean phi(A_c(cells)) ||^2
                              + w a mean over cells of cross-entropy(network(A_c(cell)), c)

Networks see the cells of stored images, enlarged. phi is the embedding of a network of a queue
(`network_queue.py`) that trains on real images, and a the accuracy in percent that it had there,
0 before that. After a step some networks of the queue train. A_c, and classes in chunks, are DM's.

The published loop takes a step of SGD after each class; one of all is the same (`class_steps.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.methods.base import CMIWeights, MethodEntry, Published
from cmidd.methods.class_draws import class_means
from cmidd.methods.class_steps import sgd_after_each_class
from cmidd.methods.dm import DM, DMDraws
from cmidd.methods.network_queue import NetworkQueue
from cmidd.networks.usual import usual_network
from cmidd.options.fields import check_filled_in
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import IIDOptions
from cmidd.view import check_factor, view_of_cells


@dataclass(frozen=True, eq=False)
class IDMDraws(DMDraws):
    """What IDM draws for an iteration; the weights are those of the queue."""

    iteration: int
    matched: int  # number of the network that images are matched in
    training: dict[int, Tensor]  # of each network that trains then, rows of real images


class IDM(DM):
    """The step of IDM on one dataset, of the classes that are this rank's."""

    options_that_may_diverge = ("lr_net",)

    def __init__(
        self,
        dataset: Dataset,
        labels: Tensor,
        options: IDMOptions | IIDOptions,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepare steps on images whose labels are `labels`, ascending."""
        check_filled_in(options)
        own = options if isinstance(options, IDMOptions) else options.of_idm()
        _, height, width = dataset.shape
        check_factor(own.factor, (height, width))
        if dataset.whitening is not None:
            raise ValueError(
                "zca: expected images without whitening, as IDM was published, got whitened ones"
            )
        size = height, width
        self.view = view_of_cells(own.factor, size, dataset.mean, dataset.std, order="columns")
        self.seen_of_stored = own.factor**2
        super().__init__(dataset, labels, options, seed, device, dtype)
        self.accuracy_weight = own.accuracy_weight
        labels = torch.tensor(self.share.classes).repeat_interleave(torch.tensor(self.counts))
        self.seen_labels = torch.split(labels.to(device), self.counts)  # of each class
        self.queue = NetworkQueue(self.network, dataset, self.all_real, own, seed, self.precision)
        self.accuracy = torch.zeros((), dtype=dtype, device=device)  # of the network matched in
        self.distance = torch.zeros_like(self.accuracy)  # in the loss, of the rank's classes

    def real_images(self) -> Images:
        """The same, as a part of all, which networks of the queue train on."""
        mine, self.all_real = self.share.real_images_of_all(self.dataset.train, self.device)
        return mine

    def draw(self, iteration: int, update: int) -> IDMDraws:  # noqa: ARG002
        """The networks, real images and augmentations of an iteration."""
        return IDMDraws({}, *self.draw_images(iteration), iteration, *self.queue.draw(iteration))

    def loss_and_gradient(self, images: Tensor, draws: DMDraws) -> tuple[Tensor, Tensor]:
        """Loss and its gradient with respect to the stored images, `(N, ch, H, W)`."""
        assert isinstance(draws, IDMDraws)
        self.queue.begin(draws.iteration)
        self.accuracy = self.queue.accuracy(draws.matched)
        self.distance.zero_()
        with record_function("dm.network"):
            weights = self.queue.weights(draws.matched)
        found = super().loss_and_gradient(images, replace(draws, weights=weights))
        with record_function("idm.training"):
            self.queue.train(draws.training)
        return found

    def loss_of_features(self, features: Tensor, targets: list[Tensor], classes: slice) -> Tensor:
        """DM's, and the cross-entropy, a mean over the images of each class."""
        loss, counts = super().loss_of_features(features, targets, classes), self.counts[classes]
        self.distance += loss.detach()
        with self.as_network():
            logits = self.network.head(features).to(features.dtype)
        labels = torch.cat(self.seen_labels[classes])
        entropies = F.cross_entropy(logits, labels, reduction="none")
        weight = self.accuracy_weight * 100 * self.accuracy
        return loss + weight * class_means(entropies[:, None], counts).sum()

    def optimizer(self, groups: list[dict[str, Any]], momentum: float) -> torch.optim.Optimizer:
        """SGD whose step is that of one step after each class."""
        return sgd_after_each_class(groups, momentum, self.dataset.num_classes)

    def log_values(self) -> dict[str, Tensor]:
        """The accuracy of the network, a share, and the loss without cross-entropies."""
        distance = self.distance.clone()
        ranks.add_up(distance)
        return {"accuracy": self.accuracy, "distance": distance}

    def state(self) -> dict[str, Tensor]:
        """The networks of the queue that have trained."""
        return self.queue.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the queue back."""
        self.queue.load_state(state)

    def state_bytes(self, iterations: int) -> int:
        """Bytes of the queue after so many iterations, at most."""
        return self.queue.state_bytes(iterations)


class Setting(NamedTuple):
    """What is known for a dataset, for 1, 10 and 50 stored images per class."""

    accuracy_weight: tuple[float, float, float]
    steps_net: tuple[int, int, int] = (10, 10, 10)
    factor: int = 2
    origin: str = "published"


SETTINGS = {
    "cifar10": Setting((0.5, 0.5, 0.1)),
    "cifar100": Setting((0.5, 0.1, 0.1), (10, 50, 10)),
    "tinyimagenet": Setting((0.5, 0.5, 0.8), (10, 10, 50)),
    "digits": Setting((0.5, 0.05, 0.05), factor=1, origin="ours"),
}
IPCS = (1, 10, 50)
"""The numbers of stored images per class that settings are published for."""


def published(dataset: Dataset, ipc: int) -> Published:
    """Settings of IDM with cells, for the nearest number of images per class; 1 is for 1 alone."""
    setting = SETTINGS.get(dataset.name, SETTINGS["cifar10"])
    column = 0 if ipc == 1 else 1 if ipc < 30 else 2
    near = "" if ipc == IPCS[column] else f" for {IPCS[column]} images per class"
    origin, batch_net = f"as published{near}", 256
    if setting.origin != "published":
        origin = "ours, chosen by training images that were held out"
        batch_net = _batch_net(len(dataset.train))
    elif dataset.name not in SETTINGS:
        origin = f"not published for {dataset.name}; IDM's for CIFAR-10{near}"
        batch_net = _batch_net(len(dataset.train))
        if batch_net < 256:
            origin += ", but batch_net is ours"
    return Published(
        loop={
            "iterations": 20000,
            "init": "smooth_cells" if setting.factor > 1 else "real",
            "lr_images": 0.2,
            "report_every": 10,
            "checkpoint_every": 100,
        },
        options={
            "network": usual_network(dataset.shape.height),
            "factor": setting.factor,
            "batch_real": 256 if column else 5000,
            "accuracy_weight": setting.accuracy_weight[column],
            "push_interval": 30 if column else 5,
            "steps_net": setting.steps_net[column],
            "batch_net": batch_net,
        },
        origin=origin,
    )


def _batch_net(images: int) -> int:
    """Of a set that nothing is published for: a step is not more than a twentieth of it."""
    return min(256, max(32, images // 20))


# CMI's are those of DM, whose loss is as large.
IDM_ENTRY = MethodEntry(IDM, IDMOptions, published, CMIWeights(ours={"digits": (1, 1)}))
