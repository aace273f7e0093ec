"""Networks for cross-architecture evaluation: MLP, LeNet, AlexNet and VGG-11 for small images."""

from __future__ import annotations

from torch import nn

from cmidd.networks.layers import Convolution, between_convolutions, check_size, padded


def mlp(channels: int, size: int, *, width: int = 128) -> nn.Module:
    """Three linear layers, width units in the two hidden ones."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, width),
        nn.ReLU(inplace=True),
        nn.Linear(width, width),
        nn.ReLU(inplace=True),
    )


def lenet(channels: int, size: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling: two convolutions 5x5, three linear layers."""
    check_size("lenet", size, 16, "has two unpadded convolutions 5x5")
    padding = 2 if size == 28 else 0  # 28 pixels become 32
    last = ((size + 2 * padding - 4) // 2 - 4) // 2  # pixels of a side of the last maps
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * last * last, 120),
        nn.ReLU(inplace=True),
        nn.Linear(120, 84),
        nn.ReLU(inplace=True),
    )


def alexnet(channels: int, size: int) -> nn.Module:
    """AlexNet for small images: five convolutions, three max poolings, one linear layer."""
    check_size("alexnet", size, 8, "halves its maps 3 times")
    padding, _ = padded(size)
    layers: list[nn.Module] = []
    # Width, kernel, padding and whether maps are halved, of each convolution.
    for width, kernel, around, halved in (
        (128, 5, padding + 1, True),
        (192, 5, 2, True),
        (256, 3, 1, False),
        (192, 3, 1, False),
        (192, 3, 1, True),
    ):
        layers += [nn.Conv2d(channels, width, kernel, padding=around), nn.ReLU(inplace=True)]
        if halved:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(*layers)


def vgg11(channels: int, size: int, *, norm: str = "instance") -> nn.Module:
    """VGG-11 for small images: eight convolutions 3x3, five max poolings, one linear layer."""
    check_size("vgg11", size, 32, "halves its maps 5 times")
    padding, size = padded(size)
    layers: list[nn.Module] = []
    for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in widths:
            layers += [
                Convolution(channels, width, padding, norm),
                *between_convolutions(width, size, norm)[:2],
            ]
            channels, padding = width, 1
        layers.append(nn.MaxPool2d(2))
        size //= 2
    return nn.Sequential(*layers)
