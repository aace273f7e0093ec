"""Images, uint8 and sorted by class, so that the rows of a class are one slice.

class c = images[offsets[c] : offsets[c + 1]]
input   = (pixel / 255 - mean) / std        per channel, then whitened where that was asked for
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets.given import Array, channels_first, labels_as_int64
from cmidd.datasets.known import KNOWN
from cmidd.datasets.pixels import ImageShape, denormalise, normalised
from cmidd.datasets.streamed import (
    Images,
    StreamedImages,
    are_few,
    one_after_another,
    rows_of,
)
from cmidd.datasets.whitening import EPS, Whitening
from cmidd.seeds import generator


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes, classes ascending.

    Attributes:
        source: (N, channels, height, width) uint8 by rows, inside a class in the order they came
            in: a tensor, or images that are made when their rows are asked for.
        labels: (N,) int64, ascending.
        offsets: (num_classes + 1,) int64; class c is rows `offsets[c]` to `offsets[c + 1]`.

    """

    source: Images
    labels: Tensor
    offsets: Tensor

    @classmethod
    def from_arrays(
        cls, images: Images | Array, labels: Tensor | Array, num_classes: int
    ) -> ImageSet:
        """Sort images by class; memory is shared where they are in order already.

        Args:
            images: (N, H, W), (N, channels, H, W) or (N, H, W, channels) uint8 with 1 or 3
                channels; channels come first where both could be meant. Streamed ones stay so.
            labels: (N,) integers from 0 to num_classes - 1.
            num_classes: how many classes there are, those without images included.

        """
        pixels = images if isinstance(images, StreamedImages) else channels_first(images)
        classes = labels_as_int64(labels, num_classes)
        if len(pixels) != len(classes):
            raise ValueError(
                f"labels must be one for each of the {len(pixels)} images, got {len(classes)}"
            )
        if not len(pixels):
            raise ValueError("images must be at least one, got none")
        if bool((classes[1:] < classes[:-1]).any()):
            classes, order = torch.sort(classes, stable=True)
            pixels = rows_of(pixels, order)
        offsets = torch.zeros(num_classes + 1, dtype=torch.int64, device=classes.device)
        offsets[1:] = torch.bincount(classes, minlength=num_classes).cumsum(0)
        return cls(pixels, classes, offsets)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.offsets) - 1

    @property
    def images(self) -> Tensor:
        """All images at once, if they can be kept."""
        source = self.source
        if isinstance(source, Tensor):
            return source
        if source.nbytes > source.keep:
            need = math.ceil(source.nbytes / 2**30 * 1000) / 1000
            raise ValueError(
                f"keep_decoded: ImageSet.images needs all of {len(source):,} images at once; "
                f"expected at least {need:.3f} GiB for them, got {source.keep / 2**30:.3g}"
            )
        return source.decoded("real images")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)

    def chosen(self, rows: Tensor) -> ImageSet:
        """The images in these rows, which are ascending."""
        return ImageSet.from_arrays(rows_of(self.source, rows), self.labels[rows], self.num_classes)

    def of_class(self, c: int) -> Tensor:
        """The images of class `c`, a view of those that are decoded already."""
        if not 0 <= c < self.num_classes:
            raise ValueError(f"c must be a class from 0 to {self.num_classes - 1}, got {c}")
        return self.source[int(self.offsets[c]) : int(self.offsets[c + 1])]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Real images to distil from and to test on.

    Attributes:
        name: what `load_dataset` was asked for.
        train: images to distil; every class has some.
        test: images to judge by, of the same shape and classes.
        class_names: the name of each class.
        mean: of each channel, of pixels in [0, 1].
        std: of each channel, of pixels in [0, 1].
        mirror: whether an image seen in a mirror keeps its class, which that of a digit does not.
        whitening: what networks see is whitened by it, where there is one.
        held_out: the share of the training images that `test` is, where it is not the test images.

    """

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    whitening: Whitening | None = None
    held_out: float | None = None

    @classmethod
    def known(
        cls, name: str, train: ImageSet, test: ImageSet, class_names: tuple[str, ...]
    ) -> Dataset:
        """One of `KNOWN`, with what is published about it."""
        about = KNOWN[name]
        return cls(name, train, test, class_names, about.mean, about.std, about.mirror)

    def __post_init__(self) -> None:
        of_train, of_test = tuple(self.train.source.shape[1:]), tuple(self.test.source.shape[1:])
        if of_train != of_test:
            raise ValueError(
                f"{self.name}: train and test images must be alike, "
                f"got (channels, height, width) of {of_train} and {of_test}"
            )
        classes = len(self.class_names), self.train.num_classes, self.test.num_classes
        if len(set(classes)) != 1:
            raise ValueError(
                f"{self.name}: class_names, train and test must have as many classes, "
                f"got {classes[0]}, {classes[1]} and {classes[2]}"
            )
        if len(self.mean) != of_train[0] or len(self.std) != of_train[0]:
            raise ValueError(
                f"{self.name}: mean and std must be one for each of {of_train[0]} channels, "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        if self.whitening is not None and len(self.whitening.mean) != math.prod(of_train):
            raise ValueError(
                f"{self.name}: whitening must be of images of {of_train}, got one of "
                f"{len(self.whitening.mean)} numbers"
            )
        for c, count in enumerate(self.train.offsets.diff().tolist()):
            if not count:
                raise ValueError(
                    f"{self.name}: class {c} ({self.class_names[c]}) has no training images"
                )

    @property
    def shape(self) -> ImageShape:
        """Channels, height and width of an image."""
        return ImageShape(*self.train.source.shape[1:])

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def judges(self) -> str:
        """What the images of `test` are, in words."""
        return "test images" if self.held_out is None else "held-out images"

    def whitened(self, eps: float | None = None) -> Dataset:
        """The dataset with images that are whitened by the covariance of `train`.

        Without `eps` as MTT was published, which whitens pixels in [0, 1] that are not normalised:
        theirs divided by the variance that normalising takes away.
        """
        if eps is None:
            eps = EPS / (sum(self.std) / len(self.std)) ** 2
        whitening = Whitening.of(self.train.source, self.mean, self.std, eps)
        return replace(self, whitening=whitening)

    def holding_out(self, share: float) -> Dataset:
        """The dataset with a share of each class's training images in the place of `test`.

        Settings that are chosen by it owe nothing to the test images. Which images are held out
        depends on the share alone, so that they are the same for a bank, a run and an evaluation.
        """
        if not 0 < share < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {share!r}")
        rest, held = [], []
        for c, count in enumerate(self.train.offsets.diff().tolist()):
            first, cut = int(self.train.offsets[c]), round(count * (1 - share))
            if not 0 < cut < count:
                name = self.class_names[c]
                raise ValueError(
                    f"held_out: class {name} of {self.name} has {count} training images, of which "
                    f"{share:g} cannot be held out; expected at least one on either side"
                )
            drawn = first + torch.randperm(count, generator=generator("held out", c))
            rest.append(drawn[:cut].sort().values)
            held.append(drawn[cut:].sort().values)
        train, test = (self.train.chosen(torch.cat(rows)) for rows in (rest, held))
        return replace(self, train=train, test=test, held_out=share)

    def to_input(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """What networks see of (N, channels, H, W) uint8 images: normalised, and whitened."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        inputs = normalised(images, self.mean, self.std, dtype)
        if self.whitening is not None:
            inputs = self.whitening.apply(inputs)
        return inputs.to(dtype)

    def inputs(self, images: Images) -> Images:
        """What networks see of uint8 images by rows, where they are.

        It is made when rows are asked for, but of a tensor of few images at once. Whitening rounds
        differently for other numbers of images, so a tensor is whitened at once whatever its size.
        """
        if isinstance(images, Tensor):
            if self.whitening is not None or are_few(images):
                return self.to_input(images)
            images = StreamedImages.of_pixels(images)
        return images.seen_by(self.to_input)

    def to_pixels(self, images: Tensor) -> Tensor:
        """The inverse of `to_input`: (N, channels, H, W) pixels, clamped to [0, 1]."""
        return to_pixels(images, self.mean, self.std, self.whitening)

    def batches(
        self, part: ImageSet, device: torch.device, size: int = 500
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images of `train` or `test` as networks see them, with their labels, in order."""
        rows = torch.split(torch.arange(len(part)), size)
        pixels = one_after_another(part.source, rows)
        for some, labels in zip(pixels, torch.split(part.labels, size), strict=True):
            yield self.to_input(some.to(device)), labels.to(device)

    def describe(self) -> dict[str, Any]:
        """What a file made from these images has to remember of them, as JSON gives it back."""
        about = {
            "dataset": self.name,
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        # Omit keys that are not needed, so that older files stay byte-identical.
        if self.whitening is not None:
            about["zca"] = self.whitening.eps
        if self.held_out is not None:
            about["held_out"] = self.held_out
        return about

    def check_made_for(self, record: Mapping[str, Any], what: str) -> None:
        """Raise unless `what`, a file with this record, was made from images like these.

        Whether some were held out does not matter here: `check_unseen` looks at that.
        """
        for name, expected in {"zca": None, **self.describe()}.items():
            if name == "held_out":
                continue
            if name == "zca" and (record.get(name) is None) != (expected is None):
                theirs = "without" if record.get(name) is None else "with"
                ours = "with" if expected is not None else "without"
                raise ValueError(
                    f"{what}: expected images {ours} whitening (zca) as {self.name} has them, got "
                    f"one made {theirs}"
                )
            if record.get(name) != expected:
                raise ValueError(
                    f"{what}: expected {name} {expected} as {self.name} has it, got "
                    f"{record.get(name)}"
                )

    def check_unseen(self, record: Mapping[str, Any], what: str) -> None:
        """Raise where `what`, a file with this record, owes anything to the held-out images.

        Of a larger share those of a smaller one are a part.
        """
        theirs = record.get("held_out") or 0.0
        if self.held_out is not None and theirs < self.held_out:
            raise ValueError(
                f"{what}: expected one made with held_out {self.held_out:g} or more, because the "
                f"images held out now judge, got one made with {theirs:g}"
            )


def to_pixels(
    images: Tensor, mean: Sequence[float], std: Sequence[float], whitening: Whitening | None
) -> Tensor:
    """Pixels in [0, 1] of what networks see, (N, channels, H, W)."""
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}")
    normalised = images.to(torch.promote_types(images.dtype, torch.float32))
    if whitening is not None:
        normalised = whitening.invert(normalised)
    return denormalise(normalised, mean, std).clamp(0, 1)
