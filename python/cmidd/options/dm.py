"""DM, distribution matching (Zhao and Bilen, WACV 2023).

An iteration moves the images so that the mean embedding of each class comes nearer to that of real
images, in a network with fresh random weights. Synthetic and real images of a class are augmented
alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmidd.options.fields import AS_PUBLISHED, Options, option
from cmidd.options.recipe import DSA, PRECISIONS


@dataclass(frozen=True)
class DMOptions(Options):
    """What the method can be told.

    Args:
        network: architecture of the random networks, such as convnet:depth=3,width=128; default:
            convnet, deeper for images from 64 x 64 on
        batch_real: real images per class and iteration
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        real_dtype: of the real branch; bfloat16 is faster and moves the class means by 1e-3
        compile: compile the real branch: a minute before the first iteration, faster after it
    """

    network: str = option(AS_PUBLISHED, names="network")
    batch_real: int = option(256, least=1)
    augmentation: str = option(DSA, names="augmentation")
    precision: str | None = option(None, choices=PRECISIONS)
    real_dtype: str = option("float32", choices=("float32", "bfloat16"))
    compile: bool = False
