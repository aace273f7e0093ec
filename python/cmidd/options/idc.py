"""IDC, efficient parametrisation by cells (Kim et al., ICML 2022).

A stored image holds factor x factor smaller ones, which networks see enlarged. An update moves the
images so that the gradient of each class comes nearer to that of real images, in a network that
trains on real images between updates and has fresh random weights in every iteration. What networks
see and real images of a class are augmented alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import PRECISIONS

METRICS = ("mse", "l1", "rows", "cosine")
"""Distances of gradients."""


@dataclass(frozen=True)
class IDCOptions(Options):
    """What the method can be told.

    Args:
        network: architecture of the random networks; default: convnet, of depth 2 for images of
            8 x 8 and deeper from 64 x 64 on
        factor: a stored image holds factor x factor of what networks see; 1 is IDC-I; default: 2,
            but 1 for digits
        batch_real: real images per class and update
        batch_syn: images that the network sees per class and update at most, drawn from all
        inner_steps: updates of the images in one iteration; default: 100, but fewer for digits
        metric: of gradients of convolutions: mse (squared distance), l1 (sum of absolute
            differences), rows (cosine of each output's weights) or cosine (of all); default: as
            published for the dataset
        lr_net: step size of the network's training on real images
        batch_net: real images a step of it
        images_net: real images that it sees between two updates; default: as published for the
            dataset
        cutmix_net: probability that a batch of them is mixed by CutMix; default: as published for
            the dataset
        augmentation: DSA operations, or none; flip is left out where mirrored images change class;
            default: as published for the dataset
        per_class_step: step after each class in turn, as published; else in one step of the same
            length, which differs only where images are clamped
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
    """

    network: str = option(AS_PUBLISHED, names="network")
    factor: int = option(AS_PUBLISHED, least=1)
    batch_real: int = option(64, least=1)
    batch_syn: int = option(128, least=1)
    inner_steps: int = option(AS_PUBLISHED, least=1)
    metric: str = option(AS_PUBLISHED, choices=METRICS)
    lr_net: float = option(0.01, least=0)
    batch_net: int = option(64, least=1)
    images_net: int = option(AS_PUBLISHED, least=1)
    cutmix_net: float = option(AS_PUBLISHED, least=0)
    augmentation: str = option(AS_PUBLISHED, names="augmentation")
    per_class_step: bool = False
    precision: str | None = option(None, choices=PRECISIONS)

    def check(self) -> None:
        """Raise where a probability is more than 1."""
        if self.cutmix_net is not AS_PUBLISHED and self.cutmix_net > 1:
            raise ValueError(
                f"cutmix_net: expected a probability from 0 to 1, got {self.cutmix_net:g}"
            )
