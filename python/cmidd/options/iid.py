"""IID, DM or IDM with relations of samples and of features (Deng et al., CVPR 2024).

An iteration moves the images as its base does. Beside the mean embedding of each class it matches
the covariance of the channels, and it draws the images of a class to their centre in a trained
network.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from cmidd.options.dm import DMOptions
from cmidd.options.fields import AS_PUBLISHED, option
from cmidd.options.idm import IDMOptions


@dataclass(frozen=True)
class IIDOptions(DMOptions):
    """What the method can be told.

    Args:
        network: architecture of the networks, such as convnet:depth=3,width=128; default: convnet,
            deeper for images from 64 x 64 on
        batch_real: real images per class and iteration; default: as published for the base
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        real_dtype: of the real branch; bfloat16 is faster, moves means by 1e-3, covariances by 2e-3
        compile: compile the real branch: a minute before the first iteration, faster after it
        covariance_weight: of the distance of covariances; default: as published for CIFAR-10
        centre_weight: of the distances to the centre; default: as published for CIFAR-10
        centre_bank: file of the trained networks that the centre is measured in, made by cmidd
            pretrain; needed from two images per class on, unless centre_weight is 0
        base: dm (random networks), or idm (cells and a queue of trained networks), of which the
            options below are, with its defaults
        factor: of idm: a stored image holds factor x factor of what networks see
        accuracy_weight: of idm: of the cross-entropy, beside the accuracy of the network in percent
        queue_size: of idm: networks of the queue at most
        push_interval: of idm: iterations from one new network to the next
        networks_trained: of idm: networks of the queue that train after an iteration; all where
            it has fewer
        steps_net: of idm: steps that each of them takes
        batch_net: of idm: real images in a step
        lr_net: of idm: step size of their training
    """

    batch_real: int = option(AS_PUBLISHED, least=1)
    covariance_weight: float = option(AS_PUBLISHED, least=0)
    centre_weight: float = option(AS_PUBLISHED, least=0)
    centre_bank: Path | None = option(None, names="bank")
    base: str = option("dm", choices=("dm", "idm"))
    factor: int | None = option(AS_PUBLISHED, least=1)
    accuracy_weight: float | None = option(AS_PUBLISHED, least=0)
    queue_size: int | None = option(AS_PUBLISHED, least=1)
    push_interval: int | None = option(AS_PUBLISHED, least=1)
    networks_trained: int | None = option(AS_PUBLISHED, least=1)
    steps_net: int | None = option(AS_PUBLISHED, least=1)
    batch_net: int | None = option(AS_PUBLISHED, least=1)
    lr_net: float | None = option(AS_PUBLISHED, least=0)

    def __post_init__(self) -> None:
        """Leave out what only the other base has."""
        if self.base == "dm":
            for name in OF_IDM_ALONE:
                if getattr(self, name) is AS_PUBLISHED:
                    object.__setattr__(self, name, None)
        super().__post_init__()

    def check(self) -> None:
        """Raise where options of IDM are given for another base."""
        given = [name for name in OF_IDM_ALONE if getattr(self, name) is not None]
        if self.base == "dm" and given:
            raise ValueError(
                f"{given[0]}: expected none with base dm, got {getattr(self, given[0])}; it is "
                "for base idm"
            )

    def of_idm(self) -> IDMOptions:
        """Those that IDM has too."""
        return IDMOptions(**{each.name: getattr(self, each.name) for each in fields(IDMOptions)})


OF_IDM_ALONE = tuple(
    each.name
    for each in fields(IDMOptions)
    if each.name not in {of_dm.name for of_dm in fields(DMOptions)}
)
