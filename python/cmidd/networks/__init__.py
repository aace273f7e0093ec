"""Networks by name: `build_network("convnet:depth=4", 3, 64, 10)`, then `initialize`.

`spec` reads the names, `layers`, `convnet`, `resnet` and `classic` make the features, `base` adds
the head and fills the parameters.
"""

from __future__ import annotations

from cmidd.networks.base import Network, at_a_time, check_one_image, freeze, initialize
from cmidd.networks.spec import NETWORKS, NetworkSpec, build_network, describe_networks

__all__ = [
    "NETWORKS",
    "Network",
    "NetworkSpec",
    "at_a_time",
    "build_network",
    "check_one_image",
    "describe_networks",
    "freeze",
    "initialize",
]
