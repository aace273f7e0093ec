"""IDM, DM with cells and trained networks (Zhao et al., CVPR 2023).

A stored image holds factor x factor smaller ones, which networks see enlarged. An iteration moves
the images as DM does, in a network of a queue whose networks train on real images. What it sees it
is also to recognise, the more so the better it is at real images.
"""

from __future__ import annotations

from dataclasses import dataclass

from cmidd.options.dm import DMOptions
from cmidd.options.fields import AS_PUBLISHED, option


@dataclass(frozen=True)
class IDMOptions(DMOptions):
    """What the method can be told.

    Args:
        network: architecture of the networks, such as convnet:depth=3,width=128; default: convnet,
            deeper for images from 64 x 64 on
        batch_real: real images per class and iteration, or all that a class has; default: as
            published for the images per class
        augmentation: DSA operations, or none; flip is left out where mirrored images change class
        precision: of networks: float32, tf32 (on GPUs) or bfloat16; default: tf32 on a GPU that has
            it, else float32
        real_dtype: of the real branch; bfloat16 is faster and moves the class means by 1e-3
        compile: compile the real branch: a minute before the first iteration, faster after it
        factor: a stored image holds factor x factor of what networks see; default: 2, for digits 1
        accuracy_weight: of the cross-entropy, beside the accuracy of the network in percent;
            default: as published for the dataset
        queue_size: networks of the queue at most
        push_interval: iterations from one new network to the next; default: as published for the
            images per class
        networks_trained: networks of the queue that train after an iteration; all where it has
            fewer
        steps_net: steps that each of them takes; default: as published for the dataset
        batch_net: real images in a step; default: 256, and fewer where there are few
        lr_net: step size of their training
    """

    batch_real: int = option(AS_PUBLISHED, least=1)
    factor: int = option(AS_PUBLISHED, least=1)
    accuracy_weight: float = option(AS_PUBLISHED, least=0)
    queue_size: int = option(100, least=1)
    push_interval: int = option(AS_PUBLISHED, least=1)
    networks_trained: int = option(2, least=1)
    steps_net: int = option(AS_PUBLISHED, least=1)
    batch_net: int = option(AS_PUBLISHED, least=1)
    lr_net: float = option(0.01, least=0)
