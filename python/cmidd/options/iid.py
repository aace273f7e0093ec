"""IID, DM with relations of samples and of features (Deng et al., CVPR 2024).

An iteration moves the images as DM does. Beside the mean embedding of each class it matches the
covariance of the channels, and it draws the images of a class to their centre in a trained network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmidd.options.dm import DMOptions
from cmidd.options.fields import AS_PUBLISHED, option


@dataclass(frozen=True)
class IIDOptions(DMOptions):
    """What the method can be told.

    Args:
        network: architecture of the random networks, such as convnet:depth=3,width=128; default:
            convnet, deeper for images from 64 x 64 on
        batch_real: real images per class and iteration
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        real_dtype: of the real branch; bfloat16 is faster, moves means by 1e-3, covariances by 2e-3
        compile: compile the real branch: a minute before the first iteration, faster after it
        covariance_weight: of the distance of covariances; default: as published for CIFAR-10
        centre_weight: of the distances to the centre; default: as published for CIFAR-10
        centre_bank: file of the trained networks that the centre is measured in, made by cmidd
            pretrain; needed from two images per class on, unless centre_weight is 0
    """

    covariance_weight: float = option(AS_PUBLISHED, least=0)
    centre_weight: float = option(AS_PUBLISHED, least=0)
    centre_bank: Path | None = option(None, names="bank")
