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
            pretrain with --network convnet; the seed in it gives the weights that each began with
        factor: a stored image holds factor x factor of what networks see
        batch_real: real images per class and iteration
        frequencies: numbers that the characteristic functions are compared at, drawn anew in every
            iteration
        amplitude_weight: of the difference of their amplitudes
        phase_weight: of the difference of their phases
        distance_weight: of their distance
        calibration_weight: of the cross-entropy of the last weights
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        optimizer: of the images: adamw, or sgd with the momentum of the run; default: as published
            for the dataset
        weight_decay: of adamw on the pixels
        patience: iterations without a smaller loss after which the step size is halved
        per_class_step: step after each class in turn, as published; else one step for all
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
    """

    matching_bank: Path = option(names="bank")
    factor: int = option(2, least=1)
    batch_real: int = option(1024, least=1)
    frequencies: int = option(4096, least=1)
    amplitude_weight: float = option(0.5, least=0)
    phase_weight: float = option(0.5, least=0)
    distance_weight: float = option(300.0, least=0)
    calibration_weight: float = option(1.0, least=0)
    augmentation: str = option("idc:color_crop_cutout", names="augmentation")
    optimizer: str = option(AS_PUBLISHED, choices=OPTIMIZERS)
    weight_decay: float = option(5e-4, least=0)
    patience: int = option(500, least=0)
    per_class_step: bool = False
    precision: str | None = option(None, choices=PRECISIONS)
