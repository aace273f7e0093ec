"""What networks learn of teachers: the mean of their logits, and the loss between it and theirs.

With teacher's logits t and a network's logits s of an image, C classes and temperature T:

    kl     sum_c softmax(t / T)_c (log softmax(t / T)_c - log softmax(s / T)_c), and times T^2 where
           the recipe says so
    mse    (1 / C) sum_c (t_c - s_c)^2

and to both a weight times the cross-entropy of the image's label, or of its mixture of labels.
Teachers are in eval mode and see each image as the network does, augmented and mixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmidd.datasets import Dataset
from cmidd.networks.base import GPU_IMAGES_FORWARD, images_per_chunk
from cmidd.options.recipe import Recipe
from cmidd.stack import Stack
from cmidd.storage.tensor_file import checksum
from cmidd.synthetic import SyntheticSet
from cmidd.training import Objective, cross_entropy
from cmikernels.precision import computing


class Teacher(ABC):
    """What gives the logits that networks learn.

    Attributes:
        about: it, in words.
        record: what tells it from others, for JSON.
        nbytes: what it takes beside the images.
        draws: fields of a recipe that it is made for.
        seed: of the order, augmentation and mixing of all networks; None: each has its own.

    """

    about: str
    record: Mapping[str, Any]
    nbytes: int
    draws: Mapping[str, Any] = {}
    seed: int | None = None

    @abstractmethod
    def logits(self, epoch: int, places: slice, images: Tensor, num_classes: int) -> Tensor:
        """`(K, B, C)` of images `(K, B, ...)`, which have these places in the epoch's order."""

    def check(
        self,
        synthetic_set: SyntheticSet,  # noqa: ARG002
        dataset: Dataset,  # noqa: ARG002
        recipe: Recipe,
    ) -> None:
        """Raise where networks cannot learn a set of a dataset from it by a recipe."""
        check_loss(recipe, self)

    def __call__(
        self, epoch: int, places: slice, images: Tensor, targets: Tensor, num_classes: int
    ) -> Tensor:
        """What `train` gives its objective: logits, then probabilities of labels, (K, B, 2, C)."""
        logits = self.logits(epoch, places, images, num_classes).to(images)
        if targets.ndim == 2:
            targets = F.one_hot(targets, num_classes)
        return torch.stack((logits, targets.to(images)), 2)


class TeacherNetworks(Teacher):
    """Teachers in the loop: networks that see every batch that networks train on.

    Args:
        networks: of images as the networks that learn see them, in eval mode, on their device.
            Whether they were trained on images that are held out for judging, modules do not say:
            that is for you to know.
        name: what to call them in words.
        precision: that they compute in: float32, tf32 or bfloat16.
    """

    def __init__(
        self, networks: Sequence[nn.Module], name: str = "a teacher", precision: str = "float32"
    ) -> None:
        self.networks, self.precision = check_teachers(networks), precision
        self.about = f"logits of {name}"
        self.record = {"teachers": checksums(networks)}
        self.nbytes = sum(
            tensor.nbytes for network in networks for tensor in network.state_dict().values()
        )

    def logits(
        self,
        epoch: int,  # noqa: ARG002
        places: slice,  # noqa: ARG002
        images: Tensor,
        num_classes: int,
    ) -> Tensor:
        """Those of the images, whatever their places."""
        found = mean_logits(self.networks, images.flatten(0, 1), num_classes, self.precision)
        return found.view(*images.shape[:2], num_classes)


def check_loss(recipe: Recipe, teacher: Teacher | None) -> None:
    """Raise where a recipe has a loss for logits and no teacher gives them, or the reverse."""
    if teacher is None and recipe.soft_loss != "none":
        raise ValueError(
            "recipe: expected a teacher or a file of soft labels with soft_loss "
            f"{recipe.soft_loss}, got none"
        )
    if teacher is not None and recipe.soft_loss == "none":
        raise ValueError(
            f"recipe: expected soft_loss kl or mse, to learn {teacher.about}, got none"
        )


def check_teachers(networks: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Networks that are at least one, and in eval mode."""
    if not networks:
        raise ValueError("teachers: expected at least one network, got none")
    if any(network.training for network in networks):
        raise ValueError("teachers: expected networks in eval mode, got one in training mode")
    return networks


def checksums(networks: Sequence[nn.Module]) -> list[int]:
    """Of the state of each network."""
    return [checksum(network.state_dict()) for network in networks]


@torch.no_grad()
def mean_logits(
    networks: Sequence[nn.Module], images: Tensor, num_classes: int, precision: str
) -> Tensor:
    """`(N, C)`, the mean over networks, of images `(N, channels, height, width)`."""
    chunk, means = images_per_chunk(images.device, images.shape[-1], GPU_IMAGES_FORWARD), []
    with computing(precision, images.device.type, network=True):
        for some in torch.split(images, chunk):
            of_each = [network(some).to(some.dtype) for network in networks]
            for logits in of_each:
                if logits.shape != (len(some), num_classes):
                    raise ValueError(
                        f"teachers: expected logits of {num_classes} classes, got "
                        f"{tuple(logits.shape)} of {len(some)} images"
                    )
            means.append(torch.stack(of_each).mean(0))
    found = torch.cat(means)
    if not found.isfinite().all():
        raise FloatingPointError("teachers: expected finite logits, got NaN or Inf among them")
    return found


def objective_of(recipe: Recipe) -> Objective:
    """What networks minimise that learn a teacher's logits, or labels where there is no teacher."""
    if recipe.soft_loss == "none":
        return cross_entropy

    def objective(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        logits, labels = targets.flatten(0, 1).unbind(1)
        return soft_loss(stack(images).flatten(0, 1), logits, labels, recipe)

    return objective


def soft_loss(found: Tensor, logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """The sum over images of what the first lines of this file say.

    Args:
        found: logits `(N, C)` of the network.
        logits: `(N, C)` of the teacher.
        labels: probabilities `(N, C)`.
        recipe: says which loss, temperature and weight.
    """
    if recipe.soft_loss == "mse":
        loss = F.mse_loss(found, logits, reduction="sum") / found.shape[1]
    else:
        log_found, log_taught = (
            F.log_softmax(each / recipe.temperature, 1) for each in (found, logits)
        )
        loss = F.kl_div(log_found, log_taught, reduction="sum", log_target=True)
        if recipe.temperature_squared:
            loss = loss * recipe.temperature**2
    if recipe.ce_weight:
        loss = loss + recipe.ce_weight * F.cross_entropy(found, labels, reduction="sum")
    return loss
