"""Which architecture suits images of a size, where nobody names one."""

from __future__ import annotations


def bank_network(dataset: str, size: int) -> str:
    """The architecture whose features CMI is taken from: as published, a ResNet-18.

    Its instance norm sees single pixels on images of 8 x 8 and makes all images the same; groups of
    channels do not. The digits need no more than a quarter of the channels.
    """
    if dataset == "digits":
        return "resnet18:width=16,norm=group"
    return "resnet18" if size > 8 else "resnet18:norm=group"


def usual_network(size: int) -> str:
    """The architecture that images of size x size are made for: as published, a ConvNet.

    Of depth 3 up to 32 x 32 and one more for every doubling, after which maps are 4 x 4.
    """
    depth = max(3, size.bit_length() - 3)
    return "convnet" if depth == 3 else f"convnet:depth={depth}"


def gradient_network(size: int) -> str:
    """The architecture whose gradients and training are matched: the usual one.

    But its third instance norm sees 2 x 2 pixels of images of 8 x 8: derivatives of its gradients
    are a hundred times those of the first two, and drown them.
    """
    return usual_network(size) if size > 8 else "convnet:depth=2"
