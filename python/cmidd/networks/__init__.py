"""Networks by name: `build_network("convnet:depth=4", 3, 64, 10)`, then `initialize`.

`spec` reads the names, `layers`, `convnet`, `resnet`, `imagenet_resnet` and `classic` make the
features, `base` adds the head and fills the parameters.
"""

from __future__ import annotations

from cmidd.networks.base import (
    GPU_IMAGES_FORWARD,
    GPU_IMAGES_SECOND_ORDER,
    Network,
    check_images_are_independent,
    cmi_images_per_chunk,
    draw_weights,
    freeze,
    images_per_chunk,
    initialize,
)
from cmidd.networks.spec import (
    NETWORKS,
    NetworkSpec,
    build_network,
    has_batch_norm,
    network_outline,
)

__all__ = [
    "GPU_IMAGES_FORWARD",
    "GPU_IMAGES_SECOND_ORDER",
    "NETWORKS",
    "Network",
    "NetworkSpec",
    "build_network",
    "check_images_are_independent",
    "cmi_images_per_chunk",
    "draw_weights",
    "freeze",
    "has_batch_norm",
    "images_per_chunk",
    "initialize",
    "network_outline",
]
