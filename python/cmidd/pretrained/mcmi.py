"""MCMI: trained networks are fine-tuned so that their outputs tell more of an image than its class.

    loss = mean over images i of  cross-entropy + weight KL(P_i || C_y),    P_i = softmax(logits_i)

y is the class of image i. The weight is negative, so that the outputs of a class spread around
its centroid C_y (arXiv 2401.08732), more than by cross-entropy alone. The centroids of a network
are the means of its outputs, class by class, over the augmented training images. One pass before
its first step measures them, in which batch norm normalises by the batch. They stay as they are,
or move after every batch, by the n images of the class in it. On a CPU they move after every part
of a batch that goes through the network together: 128 images of 32 x 32 pixels, or 16 where the
memory of their maps is given back to the system.

    C_y <- d^n C_y + (1 - d^n) (mean of P_i over these)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd.augment import Strategy, augment
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images, one_after_another
from cmidd.device import precision_on
from cmidd.networks import Network
from cmidd.options.pretrained import BankOptions
from cmidd.options.recipe import Recipe
from cmidd.seeds import seed_of
from cmidd.stack import Stack
from cmidd.training_draws import draw_epoch
from cmikernels import EmpiricalCMI, fused_cmi

_CENTROIDS = "centroids"


class MCMI:
    """How the networks of a bank are fine-tuned, a `Tuning` of `filler.py`.

    Args:
        source: the networks that they begin as, frozen.
        record: what they are, and what tells them from others.
        dataset: what they learn.
        options: as `BankOptions` has them of MCMI.
        device: where.
    """

    def __init__(
        self,
        source: Sequence[Network],
        record: Mapping[str, Any],
        dataset: Dataset,
        options: BankOptions,
        device: torch.device,
    ) -> None:
        self.source, self.dataset, self.options, self.device = source, dataset, options, device
        self.spec, self.precision = record["network"], precision_on(device, options.precision)
        self.weight = options.mcmi_weight or 0.0
        self.decay = options.decay
        self.about = {"source": dict(record), "weight": self.weight, "centroid_decay": self.decay}
        classes = dataset.num_classes
        table = torch.zeros(classes, classes, dtype=torch.float64, device=device)
        self.state = {_CENTROIDS: table}

    def first_state(self, number: int) -> dict[str, Tensor]:
        """The state of a network of the source."""
        return dict(self.source[number].state_dict())

    def prepare(self, stack: Stack, images: Images, labels: Tensor, seed: int) -> None:
        """Measure the centroids of a network that begins."""
        strategy = Strategy.parse(self.options.augmentation, mirror=self.dataset.mirror)
        found = train_centroids(
            self._stack(stack.states()[0]),
            images,
            labels,
            strategy,
            self.options.batch_size,
            seed_of(seed, "centroids"),
        )
        self.state[_CENTROIDS] = found.to(self.device)

    def objective(self, stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        """The loss, a sum over the images of one network."""
        logits, centroids = stack(images)[0], self.state[_CENTROIDS]
        # Each row a class of its own: labels would be read, for which a GPU has to be waited for.
        spread = fused_cmi(
            logits[:, None],
            centroids=centroids[targets[0]].to(logits.dtype),
            weight=self.weight,
            reduction="sum",
        )
        if self.decay is not None:
            self.state[_CENTROIDS] = moved(centroids, logits.detach(), targets[0], self.decay)
        return F.cross_entropy(logits, targets[0], reduction="sum") + spread

    def judge(self, stack: Stack, number: int) -> tuple[float, str]:
        """Accuracy and CMI on the images that judge, and what both were before."""
        before, cmi_before = self._judged(self._stack(self.first_state(number)))
        accuracy, cmi = self._judged(stack)
        return accuracy, f", CMI {cmi:.4g} (before: {before:.1%}, CMI {cmi_before:.4g})"

    def _stack(self, state: Mapping[str, Tensor]) -> Stack:
        """A network with a copy of a state."""
        here = {name: tensor.to(self.device) for name, tensor in state.items()}
        return Stack(
            self.spec, self.dataset.shape, self.dataset.num_classes, [here], self.precision
        )

    def _judged(self, stack: Stack) -> tuple[float, float]:
        stack.network.eval()
        batches = self.dataset.batches(self.dataset.test, self.device)
        return accuracy_and_cmi(lambda x: stack(x[None])[0], batches, stack.num_classes)


@torch.no_grad()
def train_centroids(
    stack: Stack,
    images: Images,
    labels: Tensor,
    strategy: Strategy,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Mean outputs of each class `(C, C)` float64, of one network as it sees images in training.

    Where it keeps statistics of batches, they change.
    """
    drawn = draw_epoch([seed], len(images), Recipe(1, batch_size=batch_size), strategy, 0)
    batches = torch.split(drawn.order, batch_size, dim=1)
    metric = EmpiricalCMI(stack.num_classes, stack.num_classes).to(images.device)
    stack.network.train()
    for step, (rows, x) in enumerate(zip(batches, one_after_another(images, batches), strict=True)):
        if drawn.augmentation:
            x = augment(x.flatten(0, 1), strategy, drawn.augmentation[step]).view_as(x)
        metric.update(stack(x)[0], labels[rows[0].to(labels.device)])
    return metric.centroids()


def moved(centroids: Tensor, logits: Tensor, targets: Tensor, decay: float) -> Tensor:
    """Centroids `(C, M)` after a batch, of which each class has moved as often as it has rows."""
    numbers = torch.arange(len(centroids), device=targets.device)
    of_class = (targets == numbers[:, None]).double()  # sums in a fixed order on a GPU too
    counts = of_class.sum(1, keepdim=True)
    means = of_class @ logits.double().softmax(1) / counts.clamp_min(1)
    left = decay**counts
    mixed = left * centroids + (1 - left) * means
    return (mixed / mixed.sum(1, keepdim=True)).to(centroids.dtype)


@torch.no_grad()
def accuracy_and_cmi(
    network: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], num_classes: int
) -> tuple[float, float]:
    """The share of images whose class has the largest logit, and the CMI of the outputs."""
    metric = EmpiricalCMI(num_classes, num_classes)
    right, count = 0, 0
    for images, labels in batches:
        logits = network(images)
        metric.to(logits.device).update(logits, labels)
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    # Of this process alone: `compute` would wait for other ranks, which have other networks.
    share = metric.counts().double() / count
    return right / count, float(metric.of_classes() @ share)
