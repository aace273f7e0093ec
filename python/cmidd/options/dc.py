"""DC, gradient matching (Zhao et al., ICLR 2021); `dsa` is the same with augmentation.

An update moves the images so that the gradient of each class comes nearer to that of real images,
in a network that trains on the synthetic images between updates and has fresh random weights in
every iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import PRECISIONS

METRICS = ("rows", "mse", "cosine")
"""Distances of gradients."""


@dataclass(frozen=True)
class DCOptions(Options):
    """What the method can be told.

    Args:
        network: architecture of the random networks; default: convnet, of depth 2 for images of
            8 x 8 and deeper from 64 x 64 on
        batch_real: real images per class and update
        outer_steps: updates of the images in one iteration; default as published for the ipc
        inner_epochs: of the network on the images between updates; default as published for the ipc
        metric: of gradients: rows (cosine of each output's weights), cosine (of all) or mse
        lr_net: step size of that training
        batch_net: images a step of it
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        compile: compile the network for its training and, on a CPU, for real images: a minute
            before the first iteration, faster after it
    """

    network: str = option(AS_PUBLISHED, names="network")
    batch_real: int = option(256, least=1)
    outer_steps: int = option(AS_PUBLISHED, least=1)
    inner_epochs: int = option(AS_PUBLISHED, least=1)
    metric: str = option("rows", choices=METRICS)
    lr_net: float = option(0.01, least=0)
    batch_net: int = option(256, least=1)
    augmentation: str = option("none", names="augmentation")
    precision: str | None = option(None, choices=PRECISIONS)
    compile: bool = False
