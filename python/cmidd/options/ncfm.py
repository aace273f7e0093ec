"""NCFM, matching of characteristic functions (Wang et al., CVPR 2025).

A stored image holds factor x factor smaller ones, which networks see enlarged. An iteration moves
the images so that the characteristic function of the features of each class comes nearer to that of
real images, in a network between the first and the last weights of one of a bank. The last weights
also judge whether they know the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import OPTIMIZERS, PRECISIONS


@dataclass(frozen=True)
class NCFMOptions(Options):
    """What the method can be told.

    Args:
        matching_bank: file of the trained networks that features are matched in, made by cmidd
            pretrain with --network convnet (convnet:depth=4 for images of 64 x 64); the seed in it
            gives the weights that each began with
        factor: a stored image holds factor x factor of what networks see; default: 2 as published,
            for digits 1
        batch_real: real images per class and iteration
        frequencies: vectors that the characteristic functions are compared at, drawn anew in every
            iteration
        amplitude_weight: of the difference of their amplitudes
        phase_weight: of the difference of their phases
        distance_weight: of their distance
        calibration_weight: of the cross-entropy of the last weights
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        optimizer: of the images: adamw, or sgd with the momentum of the run, whose step is as long
            as those that are published after each class; default: as published for the dataset
        weight_decay: of adamw on the pixels; default: as published, which is none for sgd
        patience: iterations without a loss that is smaller by a ten-thousandth, after which the
            step size is halved
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
    """

    matching_bank: Path = option(names="bank")
    factor: int = option(AS_PUBLISHED, least=1)
    batch_real: int = option(1024, least=1)
    frequencies: int = option(4096, least=1)
    amplitude_weight: float = option(0.5, least=0)
    phase_weight: float = option(0.5, least=0)
    distance_weight: float = option(300.0, least=0)
    calibration_weight: float = option(1.0, least=0)
    augmentation: str = option("idc:color_crop_cutout", names="augmentation")
    optimizer: str = option(AS_PUBLISHED, choices=OPTIMIZERS)
    weight_decay: float = option(AS_PUBLISHED, least=0)
    patience: int = option(500, least=0)
    precision: str | None = option(None, choices=PRECISIONS)
