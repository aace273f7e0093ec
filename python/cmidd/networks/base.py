"""A network is features and a linear head: `logits = head(embed(images))`, and how it is filled.

`draw_weights` draws PyTorch's default distributions from a generator of the caller: weights and
biases of convolutions and linear layers from

    U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)),     fan_in = inputs that one output sees,

scales and shifts of norms are one and zero. It draws float32 on the CPU, module by module, so
networks are equal on every device, and up to rounding in every dtype.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from cmidd.memory import keep_freed_memory
from cmidd.networks.layers import Convolution
from cmidd.options.cmi import CHUNK

_Module = TypeVar("_Module", bound=nn.Module)


class Network(nn.Module):
    """A classifier: features of an image, flattened to the embedding, and a linear head on it."""

    def __init__(self, features: nn.Module, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.embed_dim = embed_dim
        self.head = nn.Linear(embed_dim, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """The embedding (N, embed_dim) of `images` (N, channels, size, size): the head's input."""
        embedding: Tensor = self.features(images).flatten(1)
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        """The logits (N, num_classes) of `images` (N, channels, size, size)."""
        logits: Tensor = self.head(self.embed(images))
        return logits


GPU_IMAGES_FORWARD, GPU_IMAGES_SECOND_ORDER = 2560, 512
"""How many 32 x 32 images fit a GPU at once.

The usual ConvNet keeps about 3 MB of each for a gradient, 5 MB for a second-order one.
"""


def draw_weights(network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A fresh state for `network`, float32 on the CPU, from `generator`, a generator of the CPU."""
    state: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        own = {**dict(module.named_parameters(recurse=False)),
               **dict(module.named_buffers(recurse=False))}  # fmt: skip
        shapes = {f"{name}.{key}".lstrip("."): tensor.shape for key, tensor in own.items()}
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = module.weight[0].numel() ** -0.5
            for key, shape in shapes.items():
                state[key] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            if isinstance(module, Convolution) and module.bias is None:
                # Drawn all the same, so that networks are those that seeds gave when it had one.
                torch.empty(module.out_channels).uniform_(-bound, bound, generator=generator)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            for key, shape in shapes.items():
                is_scale = key.endswith(("weight", "running_var"))
                state[key] = torch.ones(shape) if is_scale else torch.zeros(shape)
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(
                f"network: no rule to initialize its part {name!r}, a {type(module).__name__}; "
                "Conv2d, Linear, BatchNorm2d, GroupNorm and LayerNorm may hold parameters"
            )
    return state


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Fill `network` in place with fresh weights from `generator`, a generator of the CPU."""
    network.load_state_dict(draw_weights(network, generator))


def freeze(network: _Module) -> _Module:
    """Put `network` into eval mode without gradients of its parameters, in place, and return it."""
    return network.eval().requires_grad_(False)


def check_images_are_independent(network: nn.Module, spec: str, option: str = "network") -> None:
    """Raise unless what the network makes of an image depends on that image alone."""
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise ValueError(
            f"{option}: expected one whose features depend on one image alone, got {spec}; take "
            "norm=instance, group, layer or none"
        )


def images_per_chunk(device: torch.device, size: int, on_gpu: int) -> int:
    """Images of size x size pixels to put through a network together.

    `on_gpu` is how many 32 x 32 images a GPU takes. A CPU takes 128, and 16 where the memory of
    their maps is given back to the system after each.
    """
    count = on_gpu
    if device.type == "cpu":
        count = 128 if keep_freed_memory() else 16
    return max(1, count * 32 * 32 // size**2)


def cmi_images_per_chunk(device: torch.device, size: int) -> int:
    """Images of size x size pixels to put through a network of the bank together for CMI.

    A CPU takes 50. On a GPU these are too few for the last stages of a ResNet-18, which keeps about
    7 MB of an image of 32 x 32.
    """
    if device.type == "cpu":
        return CHUNK
    return max(CHUNK, GPU_IMAGES_SECOND_ORDER * 32 * 32 // size**2)
