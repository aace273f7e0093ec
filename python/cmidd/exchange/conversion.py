"""A distilled set of another tool, made one of ours.

normalised    (pixel - mean) / std: kept where these are ours, else undone, then normalised
whitened      as `--zca` does: kept, with the whitening of the real images
pixels        normalised
standardised  (pixel - mean) / std of all training pixels: undone, then normalised

Images that hold several are stored as they are, with the view `cells`. Enlarging them is linear, so
that it makes no difference whether it comes before or after normalising.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset, DatasetNotFound, load_dataset
from cmidd.datasets.folders import listed
from cmidd.datasets.given import labels_as_int64
from cmidd.datasets.known import KNOWN, known_record
from cmidd.datasets.statistics import channel_statistics
from cmidd.datasets.whitening import Whitening
from cmidd.exchange.peers import FORMATS, Format, Peer, read_peer
from cmidd.networks.usual import usual_network
from cmidd.options.exchange import NORMALISATIONS, ConvertOptions
from cmidd.options.recipe import PUBLISHED_RECIPE
from cmidd.storage.run_folder import versions
from cmidd.synthetic import SUM_TOLERANCE, SyntheticSet, check_probabilities
from cmidd.view import view_of_cells

_FAR = 0.5  # from pixels in [0, 1], where tools leave them unclamped


def convert(options: ConvertOptions) -> SyntheticSet:
    """The set in the file of another tool.

    Raises:
        ValueError: the file is broken or of another kind, or does not say what an option has to.
        DatasetNotFound: real images are needed, and they are not there.
    """
    real = _Real(options)
    peer = read_peer(options, lambda: real.record)
    form = FORMATS[peer.format]
    space, factor = _space(options, peer, form), _factor(options, form)
    about = real.record
    images, labels = _checked(options, peer, about)
    hard, soft = _classes(options, labels, about["num_classes"])
    missing = torch.bincount(hard, minlength=about["num_classes"]) == 0
    if missing.any():
        first = int(missing.nonzero()[0])
        raise ValueError(
            f"{options.source}: expected images of all {about['num_classes']} classes of "
            f"{about['dataset']}, got none of class {first} ({about['class_names'][first]})"
        )
    images = _normalised(images, space, real)
    if not images.isfinite().all():
        raise ValueError(f"{options.source}: expected finite images, got NaN or Inf among them")
    order = hard.argsort(stable=True)
    whitening = real.whitening if space == "whitened" else None
    record = {
        **about,
        **({} if whitening is None else {"zca": whitening.eps}),
        **_view(factor, form, space, about),
        **_how(options, peer, space, hard),
    }
    return SyntheticSet(
        images[order].contiguous(),
        hard[order],
        record,
        None if soft is None else soft[order],
        whitening,
    )


class _Real:
    """What the set was distilled from, of which images are loaded where nothing else will do."""

    def __init__(self, options: ConvertOptions) -> None:
        self.options = options
        self._loaded: Dataset | None = None

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the record of a set says of it."""
        given = self.options
        known = KNOWN.get(given.dataset)
        if known is not None and known.shape is not None:
            return known_record(given.dataset, known.shape, known.class_names)
        what = "the names of its classes"
        if known is not None:
            with _needed(what):
                _, names, shape = listed(given.dataset, given.data.expanduser(), given.size)
            return known_record(given.dataset, shape, names)
        dataset = self.dataset(what)
        return {**dataset.describe(), "class_names": list(dataset.class_names)}

    def dataset(self, what: str) -> Dataset:
        """The images, which say `what`."""
        given = self.options
        if self._loaded is None:
            with _needed(what):
                self._loaded = load_dataset(given.dataset, given.data, size=given.size)
        return self._loaded

    def measured(self, what: str) -> tuple[list[float], list[float]]:
        """Mean and deviation of the channels of its training pixels."""
        mean, std = channel_statistics(self.dataset(what).train.source)
        return list(mean), list(std)

    @cached_property
    def whitening(self) -> Whitening:
        """As `--zca` does it."""
        found = self.dataset("the whitening").whitened().whitening
        assert found is not None
        return found


@contextmanager
def _needed(what: str) -> Iterator[None]:
    """Say what images that are not there are needed for."""
    try:
        yield
    except DatasetNotFound as error:
        raise DatasetNotFound(
            f"dataset: the training images are needed for {what}, and {error}"
        ) from None


def _space(options: ConvertOptions, peer: Peer, form: Format) -> str:
    """The space of the images: as told, or as the tool always has it."""
    space = options.space or form.space
    if space is None:
        raise ValueError(
            f"space: {options.source} does not say what its numbers are; expected {form.needs}"
        )
    if peer.format == "kip" and space == "whitened":
        raise ValueError(f"space: expected {form.needs}, got whitened")
    if space == "pixels" and options.space is None:
        least, largest = peer.images.aminmax() if peer.images.numel() else (0, 0)
        if least < -_FAR or largest > 1 + _FAR:
            raise ValueError(
                f"space: {options.source} looks like {peer.format}, whose pixels are from 0 to 1, "
                f"and its numbers are from {least:g} to {largest:g}; say what they are"
            )
    return space


def _checked(
    options: ConvertOptions, peer: Peer, about: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Images, which are of the dataset, and as many labels."""
    images, labels, path = peer.images, peer.labels, options.source
    shape = about["shape"]
    if not images.is_floating_point() or list(images.shape[1:]) != shape:
        kind = "floating-point" if images.is_floating_point() else "whole"
        raise ValueError(
            f"{path}: expected floating-point images (N, {', '.join(map(str, shape))}) as "
            f"{about['dataset']} has them, got {kind} numbers of {tuple(images.shape)}"
        )
    if not len(images) or labels.ndim not in (1, 2) or len(labels) != len(images):
        raise ValueError(
            f"{path}: expected images, and a label or a row of them for each, got {len(images)} "
            f"images and labels of {tuple(labels.shape)}"
        )
    return images, labels


def _classes(
    options: ConvertOptions, labels: Tensor, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """The class of each image and, of soft labels, probabilities; theirs is the largest."""
    path = options.labels or options.source
    if labels.ndim == 1:
        if options.soft_labels is not None:
            raise ValueError(f"soft_labels: expected it with soft labels; {path} has hard ones")
        try:
            return labels_as_int64(labels, num_classes), None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
    if not labels.is_floating_point() or labels.shape[1] != num_classes:
        got = "floating-point" if labels.is_floating_point() else "whole"
        raise ValueError(
            f"{path}: expected soft labels of {num_classes} floating-point numbers, got {got} "
            f"ones of {tuple(labels.shape)}"
        )
    if not labels.isfinite().all():
        raise ValueError(f"{path}: expected finite labels, got NaN or Inf among them")
    kind = options.soft_labels or _kind_of_labels(labels, path)
    soft = labels.softmax(1) if kind == "logits" else _from_0_on(labels)
    try:
        check_probabilities(soft, (len(labels), num_classes))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return soft.argmax(1), soft


def _kind_of_labels(labels: Tensor, path: Path) -> str:
    """What rows are: probabilities add up to 1, and logits are below 0.

    Rounding may leave probabilities a little below 0, so that where both holds it has to be told.
    """
    adds_up = _add_up(labels)
    if adds_up != bool((labels < 0).any()):
        return "probabilities" if adds_up else "logits"
    both, neither = "that add up to 1, and numbers below 0", "from 0 on that do not add up to 1"
    raise ValueError(
        f"soft_labels: {path} has rows of numbers {both if adds_up else neither}; say whether they "
        "are logits or probabilities"
    )


def _add_up(labels: Tensor) -> bool:
    return bool(((labels.sum(1) - 1).abs() < SUM_TOLERANCE).all())


def _from_0_on(labels: Tensor) -> Tensor:
    """Probabilities, without what rounding has left below 0."""
    if labels.min() >= 0 or labels.min() <= -SUM_TOLERANCE or not _add_up(labels):
        return labels
    positive = labels.clamp_min(0)
    return positive / positive.sum(1, keepdim=True)


def _normalised(images: Tensor, space: str, real: _Real) -> Tensor:
    theirs, ours = _statistics(space, real), (real.record["mean"], real.record["std"])
    if space == "whitened" or theirs == ours:
        return images
    (mean, std), (our_mean, our_std) = _of_channels(*theirs), _of_channels(*ours)
    return (images * std + mean - our_mean) / our_std


def _statistics(space: str, real: _Real) -> tuple[list[float], list[float]]:
    """Mean and deviation that a tool has normalised pixels by."""
    about, told = real.record, real.options.normalised_by
    name, channels = about["dataset"], about["shape"][0]
    if told is not None and space != "normalised":
        raise ValueError(f"normalised_by: expected it with normalised images, got {space} ones")
    if space == "standardised":
        return real.measured("KIP's normalisation")
    if space != "normalised":
        return channels * [0.0], channels * [1.0]
    if told is None and name not in KNOWN:
        raise ValueError(
            f"normalised_by: no mean and deviation of {name} are published, and the file does not "
            f"say whose it has; expected one of {', '.join(NORMALISATIONS)}"
        )
    if told == "measured":
        return real.measured("their mean and deviation")
    if told == "half":
        return channels * [0.5], channels * [0.5]
    known = KNOWN[told or name]
    if len(known.mean) != channels:
        raise ValueError(
            f"normalised_by: expected numbers of {channels} channels, as {name} has, got {told}, "
            f"which has {len(known.mean)}"
        )
    return list(known.mean), list(known.std)


def _of_channels(mean: Any, std: Any) -> tuple[Tensor, Tensor]:
    centre, scale = (torch.tensor(each).view(-1, 1, 1) for each in (mean, std))
    return centre, scale


def _factor(options: ConvertOptions, form: Format) -> int:
    """The cells in a row of an image: as told, or as the tool always has it."""
    factor = options.factor or form.factor
    if factor is None:
        raise ValueError(
            f"factor: {options.source} does not say how many cells are in a row of an image; "
            f"expected {form.needs}"
        )
    return factor


def _view(factor: int, form: Format, space: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The view of images that hold several, for the record."""
    height, width = about["shape"][1:]
    if factor > min(height, width) or (
        (height % factor or width % factor) and (form.order == "columns" or space == "whitened")
    ):
        raise ValueError(f"factor: expected one that divides {height}, {width}, got {factor}")
    view = view_of_cells(factor, (height, width), about["mean"], about["std"], form.order)
    return {} if view is None else {"view": view.as_record()}


def _how(options: ConvertOptions, peer: Peer, space: str, labels: Tensor) -> dict[str, Any]:
    """Where the set came from and how it is evaluated, for the record."""
    counts = labels.bincount()
    asked = {"dataset": options.dataset, "data": str(options.data), "size": options.size}
    found: dict[str, Any] = {
        "converted": {"format": peer.format, "file": peer.file, "space": space},
        "config": asked,
        "versions": versions(),
    }
    if options.normalised_by is not None:
        found["converted"]["normalised_by"] = options.normalised_by
    if options.experiment is not None:
        found["converted"]["experiment"] = options.experiment
    if (counts == counts[0]).all():
        found["ipc"] = int(counts[0])
    if peer.lr is not None:
        found["learned_lr"] = peer.lr
    if FORMATS[peer.format].is_of_dc:
        found["network"] = usual_network(peer.images.shape[2])
        recipe = PUBLISHED_RECIPE
        found["evaluation"] = {"epochs": recipe.epochs, "augmentation": recipe.augmentation}
    return found
