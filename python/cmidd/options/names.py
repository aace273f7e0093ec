"""Names that options may take, with a line of help each: datasets and networks.

The loaders are in `cmidd.datasets`, the architectures in `cmidd.networks`.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple


class DatasetName(NamedTuple):
    """A word, or a word, a colon and what the user fills in."""

    about: str
    resizes: bool = False
    """Whether `size` means something to it."""


DATASETS = {
    "digits": DatasetName("8 x 8 grey digits that come with scikit-learn; offline"),
    "cifar10": DatasetName("CIFAR-10, binary or Python version"),
    "cifar100": DatasetName("CIFAR-100, binary or Python version"),
    "svhn": DatasetName("SVHN, cropped digits"),
    "mnist": DatasetName("MNIST, packed by gzip or not"),
    "fashionmnist": DatasetName("FashionMNIST, packed by gzip or not"),
    "tinyimagenet": DatasetName("Tiny-ImageNet, 64 x 64", resizes=True),
    "imagenet": DatasetName("ImageNet, made to size", resizes=True),
    "folder:PATH": DatasetName(
        "image files in train/<class>/ and test/<class>/ or val/<class>/", resizes=True
    ),
    "arrays:PATH.npz": DatasetName(
        "arrays train_images and test_images, uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with "
        "C 1 or 3, train_labels and test_labels, integers (N,) from 0"
    ),
    "hub:NAME": DatasetName(
        "a set of the Hugging Face hub, or a folder that save_to_disk wrote", resizes=True
    ),
}


def dataset_key(name: str) -> str:
    """The key of `DATASETS` that a name such as folder:flowers stands for."""
    word, _, argument = name.partition(":")
    for known in DATASETS:
        known_word, _, placeholder = known.partition(":")
        if word == known_word and bool(argument) == bool(placeholder):
            return known
    close = _meant(name)
    meant = "" if close is None else f"; did you mean {close}?"
    raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}; got {name!r}{meant}")


def _meant(name: str) -> str | None:
    """What is spelled like it, or the files of that name."""
    path = Path(name)
    if path.suffix == ".npz":
        return f"arrays:{name}"
    words = {known.partition(":")[0]: known for known in DATASETS}
    close = get_close_matches(name.partition(":")[0].lower(), words, n=1, cutoff=0.7)
    if close:
        return words[close[0]]
    if not name or not path.is_dir():
        return None
    return f"hub:{name}" if (path / "dataset_dict.json").exists() else f"folder:{name}"


NETWORKS = """\
convnet: depth x [conv 3x3, norm, activation, pooling]: the network of most published results.
    convnet:depth=3,width=128,norm=instance,activation=relu,pooling=avg
mlp: Three linear layers, width units in the two hidden ones.
    mlp:width=128
lenet: LeNet-5 with ReLU and max pooling: two convolutions 5x5, three linear layers.
alexnet: AlexNet for small images: five convolutions, three max poolings, one linear layer.
vgg11: VGG-11 for small images: eight convolutions 3x3, five max poolings, one linear layer.
    vgg11:norm=instance
resnet18: ResNet-18 with a stem for small images: what CMI is taken from in published results.
    resnet18:width=64,norm=instance
imagenet_resnet18: ResNet-18 as for ImageNet; with stem=small as SRe2L has it for small images.
    imagenet_resnet18:width=64,norm=batch,stem=imagenet
imagenet_resnet50: ResNet-50 as for ImageNet; with stem=small as SRe2L has it for small images.
    imagenet_resnet50:width=64,norm=batch,stem=imagenet"""
"""Each architecture, and below it all its options at their defaults."""
