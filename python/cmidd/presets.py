"""Published settings, looked up by method, dataset and images per class; and where ours begin.

The weights of CMI were published as comments in code, for 10 and 50 images per class; another
number of images takes those of the nearer one. The weight multiplies a mean over images while DM's
loss is a sum over classes and DC's over classes and layers, so it does not carry over to datasets
with other numbers of classes. Options that are None are what `settle` fills in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cmidd.evaluate import PUBLISHED

if TYPE_CHECKING:
    from cmidd.datasets import Dataset
    from cmidd.distill import DistillOptions

_Options = TypeVar("_Options")

# method -> dataset -> (weight at 10 images per class, weight at 50)
PUBLISHED_WEIGHTS: dict[str, dict[str, tuple[float, float]]] = {
    "dm": {"svhn": (18000, 500), "cifar10": (8000, 2000), "cifar100": (2000, 500)},
    "dc": {"cifar10": (50000, 10000)},
    "dsa": {"svhn": (80000, 10000), "cifar10": (50000, 10000), "cifar100": (80000, 20000)},
    "mtt": {},
}
# Ours. DM's is the best of five weights at 10 images per class; of three for DSA and two for MTT
# none was better than another, and DC has DSA's. 50 was not swept (bench/NOTES.md).
OUR_WEIGHTS: dict[str, dict[str, tuple[float, float]]] = {
    "dm": {"digits": (1, 1)},
    "dc": {"digits": (10, 10)},
    "dsa": {"digits": (10, 10)},
    "mtt": {"digits": (0.01, 0.01)},
}

# How long methods run and what they start from, as published; how often they write is ours, for
# their iterations' lengths.
LOOPS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 20000, "init": "real", "report_every": 10, "checkpoint_every": 500},
    "dc": {"iterations": 1000, "init": "noise", "report_every": 1, "checkpoint_every": 1},
    "dsa": {"iterations": 1000, "init": "real", "report_every": 1, "checkpoint_every": 1},
    "mtt": {"iterations": 5000, "init": "real", "report_every": 10, "checkpoint_every": 10},
}

# Epochs and augmentation of the networks that judge a set, where they are not those of DSA.
EVALUATION_OF_DC = {"epochs": 300, "augmentation": "none"}
EVALUATION_OF_DC_ON_MNIST = {"epochs": 1000, "augmentation": "crop_scale_rotate"}

# Images per class -> updates of the images in an iteration, and epochs of the network between two.
STEPS_OF_DC = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}

# MTT, as its authors list their settings: student steps, epochs of the expert they match, first
# epochs they may start from, lr_images, lr_step_size, first step size, images in a batch.
_NAMES_OF_MTT = (
    "student_steps", "expert_epochs", "max_start_epoch", "lr_images", "lr_step_size", "step_size",
    "batch_syn",
)  # fmt: skip
SETTINGS_OF_MTT: dict[tuple[str, int], tuple[Any, ...]] = {
    ("cifar10", 1): (50, 2, 2, 100.0, 1e-7, None, None),
    ("cifar10", 10): (30, 2, 20, 100.0, 1e-5, 1e-3, None),
    ("cifar10", 50): (30, 2, 40, 1000.0, 1e-5, 1e-3, None),
    ("cifar100", 1): (20, 3, 20, 1000.0, 1e-5, None, None),
    ("cifar100", 10): (20, 2, 20, 1000.0, 1e-5, None, None),
    ("cifar100", 50): (80, 2, 40, 1000.0, 1e-5, None, 125),
    ("tinyimagenet", 1): (10, 2, 10, 10000.0, 1e-4, None, None),
    ("tinyimagenet", 10): (20, 2, 40, 10000.0, 1e-4, None, 200),
    ("tinyimagenet", 50): (20, 2, 40, 10000.0, 1e-4, None, 300),
    # Ours.
    ("digits", 1): (10, 1, 8, 10.0, 1e-5, None, None),
    ("digits", 10): (5, 1, 8, 100.0, 1e-5, None, None),
    ("digits", 50): (5, 1, 8, 100.0, 1e-5, None, None),
}
# What of these was published with whitened images.
WHITENED = {("cifar10", 1), ("cifar10", 10), ("cifar100", 1), ("cifar100", 50)}
# What the published program does where it is not told.
_USUAL_OF_MTT = (20, 3, 25, 1000.0, 1e-5, None, None)


@dataclass(frozen=True)
class Weight:
    """A weight of CMI and where it comes from, in words for the user."""

    value: float
    origin: str


def cmi_weight(method: str, dataset: str, ipc: int) -> Weight:
    """The weight to use where the user gives none."""
    position = 0 if ipc < 30 else 1
    near = (10, 50)[position]
    for table, whose in (
        (PUBLISHED_WEIGHTS, "published"),
        (OUR_WEIGHTS, "ours, none is published"),
    ):
        if dataset in table.get(method, {}):
            value = table[method][dataset][position]
            note = "" if ipc == near else f" for {near} images per class, the nearest"
            return Weight(value, f"{whose}{note}")
    known = sorted({**PUBLISHED_WEIGHTS.get(method, {}), **OUR_WEIGHTS.get(method, {})})
    only = f" (only for {', '.join(known)})" if known else ""
    raise ValueError(
        f"cmi_weight: none is known for {method} on {dataset}{only}; give one. It multiplies a "
        "mean over images: start where weight x CMI is a tenth of the loss"
    )


def evaluation_of(method: str, dataset: str) -> dict[str, Any]:
    """Epochs and augmentation of networks that are trained on a set, as published."""
    if method == "dc":
        return EVALUATION_OF_DC_ON_MNIST if dataset == "mnist" else EVALUATION_OF_DC
    return {"epochs": PUBLISHED.epochs, "augmentation": PUBLISHED.augmentation}


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


def settle(
    method: str, dataset: Dataset, loop: DistillOptions, options: _Options
) -> tuple[DistillOptions, _Options, str]:
    """Options with what is known in the place of None, and a line for the user that says what."""
    of_method, origin = _known(method, dataset, loop.ipc)
    known = LOOPS[method] | of_method
    filled_in: dict[str, Any] = {}

    def settled(given: Any) -> Any:
        names = [
            f.name for f in fields(given) if f.name in known and getattr(given, f.name) is None
        ]
        filled_in.update({name: known[name] for name in names if known[name] is not None})
        return replace(given, **{name: known[name] for name in names})

    loop, options = settled(loop), settled(options)
    words = {name: value for name, value in filled_in.items() if not name.endswith("_every")}
    text = ", ".join(f"{name} {value}" for name, value in words.items())
    return loop, options, text and f"{text} ({origin})"


def _known(method: str, dataset: Dataset, ipc: int) -> tuple[dict[str, Any], str]:
    """What depends on the images, and where it comes from."""
    size = dataset.shape.height
    if method == "dm":
        settings = {"lr_images": 10.0 if ipc >= 100 else 1.0, "network": usual_network(size)}
        return settings, "as published"
    if method in ("dc", "dsa"):
        outer, inner = STEPS_OF_DC.get(ipc) or steps_of_dc(ipc)
        network = gradient_network(size)
        steps = {"outer_steps": outer, "inner_epochs": inner, "network": network}
        published = ipc in STEPS_OF_DC and network == "convnet"
        origin = "as published" if published else "as near to what is published as it goes"
        return {"lr_images": 0.1, **steps}, origin
    near = 1 if ipc < 5 else 10 if ipc < 30 else 50
    place = dataset.name, near
    if place not in SETTINGS_OF_MTT:
        values, origin = _USUAL_OF_MTT, f"the published program's own; none for {dataset.name}"
    else:
        whose = "published"
        if dataset.name == "digits":
            whose = "ours, with experts of --epochs 15 --lr 0.05,"
        zca = ", which whitened images: --zca" if place in WHITENED else ""
        values, origin = SETTINGS_OF_MTT[place], f"{whose} for {near} images per class{zca}"
    return dict(zip(_NAMES_OF_MTT, values, strict=True)), origin


def steps_of_dc(ipc: int) -> tuple[int, int]:
    """Ours, for images per class that were refused where the method was published.

    As many updates as images, 50 at most, and about 500 epochs in all, 50 at most between two.
    """
    outer = min(ipc, 50)
    return outer, min(50, max(10, round(500 / outer)))
