"""ResNet-18 and ResNet-50 as they are published for ImageNet, and their names in torchvision.

    stem          conv7x7 of stride 2, norm, relu, max pooling 3x3 of stride 2; small: conv3x3
    bottleneck(x) = relu(norm(conv1x1(relu(norm(conv3x3(relu(norm(conv1x1(x)))))))) + shortcut(x))

Four stages follow the stem, of the blocks of `resnet.py` or of bottlenecks, which widen maps four
times and have their stride in the 3x3 convolution. All pixels of the last maps are averaged.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from cmidd.networks.layers import between_convolutions, check_size
from cmidd.networks.resnet import Block, MakeBlock, halved, normalised, shortcut, stages

STEMS = ("imagenet", "small")
_WIDENED = 4  # maps of a bottleneck


class _Bottleneck(nn.Module):
    """Three convolutions and a shortcut; `size` is that of the maps it is given."""

    def __init__(self, channels: int, width: int, size: int, stride: int, norm: str) -> None:
        super().__init__()
        after, wide = halved(size) if stride == 2 else size, _WIDENED * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = between_convolutions(width, size, norm)[0]
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = between_convolutions(width, after, norm)[0]
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.norm3 = between_convolutions(wide, after, norm)[0]
        self.shortcut = shortcut(channels, wide, after, stride, norm)

    def forward(self, maps: Tensor) -> Tensor:
        inner = normalised(self.norm1, self.conv1(maps))
        inner = normalised(self.norm2, self.conv2(inner))
        return normalised(self.norm3, self.conv3(inner), self.shortcut(maps))


def imagenet_resnet18(
    channels: int, size: int, *, width: int = 64, norm: str = "batch", stem: str = "imagenet"
) -> nn.Module:
    """ResNet-18 as for ImageNet; with stem=small as SRe2L has it for small images."""
    sizes = channels, size, width
    return _resnet("imagenet_resnet18", (Block, 1, (2, 2, 2, 2)), sizes, norm, stem)


def imagenet_resnet50(
    channels: int, size: int, *, width: int = 64, norm: str = "batch", stem: str = "imagenet"
) -> nn.Module:
    """ResNet-50 as for ImageNet; with stem=small as SRe2L has it for small images."""
    sizes = channels, size, width
    return _resnet("imagenet_resnet50", (_Bottleneck, _WIDENED, (3, 4, 6, 3)), sizes, norm, stem)


def _resnet(
    name: str,
    blocks: tuple[MakeBlock, int, Sequence[int]],
    sizes: tuple[int, int, int],
    norm: str,
    stem: str,
) -> nn.Module:
    (channels, size, width), large = sizes, stem == "imagenet"
    if norm == "instance":
        why = "would see maps of one pixel, which it makes zero,"
        check_size(f"{name}:norm=instance", size, 33 if large else 9, why)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    kernel, stride = (7, 2) if large else (3, 1)
    layers["conv1"] = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    size = halved(size) if large else size
    layers["norm1"], layers["activation"], _ = between_convolutions(width, size, norm)
    if large:
        layers["pool"], size = nn.MaxPool2d(3, 2, 1), halved(size)
    for number, of_stage in enumerate(stages(*blocks, width, size, norm)[0], start=1):
        layers[f"layer{number}"] = nn.Sequential(*of_stage)
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(layers)


def torchvisions_name(name: str) -> str:
    """What torchvision's ResNets call a tensor of the state of a `Network` around one of these."""
    if name.startswith("head."):
        return name.replace("head.", "fc.")
    name = re.sub(r"\bnorm(?=\d)", "bn", name.removeprefix("features."))
    return name.replace(".shortcut.", ".downsample.")
