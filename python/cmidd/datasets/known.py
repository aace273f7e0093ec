"""What is published about the standard datasets, and where they are got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DIGITS = tuple("0123456789")
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Known:
    """A dataset that others have measured.

    Attributes:
        mean: of each channel, of training pixels in [0, 1].
        std: of each channel, of training pixels in [0, 1].
        page: where its files are downloaded.
        hub: its usual name on the Hugging Face hub, as `hub:` takes it.
        shape: channels, height and width, where images are not made to a size.
        class_names: where they are not names of folders.
        mirror: whether an image seen in a mirror keeps its class.
        package: of Debian and Ubuntu that brings it, where there is one.

    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    page: str
    hub: str
    shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] = ()
    mirror: bool = True
    package: str = ""


KNOWN = {
    "cifar10": Known(
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "uoft-cs/cifar10",
        (3, 32, 32),
        tuple(_CIFAR10.split()),
    ),
    "cifar100": Known(
        (0.5071, 0.4866, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "uoft-cs/cifar100",
        (3, 32, 32),
        tuple(_CIFAR100.split()),
    ),
    "svhn": Known(
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        "http://ufldl.stanford.edu/housenumbers/",
        "ufldl-stanford/svhn:cropped_digits",
        (3, 32, 32),
        _DIGITS,
        mirror=False,
    ),
    "mnist": Known(
        (0.1307,),
        (0.3081,),
        "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz "
        "(and the three others named like it)",
        "ylecun/mnist",
        (1, 28, 28),
        _DIGITS,
        mirror=False,
    ),
    "fashionmnist": Known(
        (0.2861,),
        (0.3530,),
        "https://github.com/zalandoresearch/fashion-mnist",
        "zalando-datasets/fashion_mnist",
        (1, 28, 28),
        _FASHION,
        package="dataset-fashion-mnist",
    ),
    "tinyimagenet": Known(
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "zh-plus/tiny-imagenet",
    ),
    "imagenet": Known(
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        "https://image-net.org/download.php",
        "ILSVRC/imagenet-1k",
    ),
}


def known_record(name: str, shape: Sequence[int], class_names: Sequence[str]) -> dict[str, Any]:
    """What `Dataset.describe` says of a dataset of `KNOWN`, and the names of its classes."""
    return {
        "dataset": name,
        "shape": list(shape),
        "num_classes": len(class_names),
        "mean": list(KNOWN[name].mean),
        "std": list(KNOWN[name].std),
        "class_names": list(class_names),
    }
