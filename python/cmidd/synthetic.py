"""The distilled set and its file.

Format, one safetensors file: `images` (N, channels, height, width) float32 as networks take them,
(pixel - mean) / std with pixels in [0, 1]; `labels` (N,) int64; and a JSON record with all that
using them takes: dataset, class names, mean, std, images per class, how they were made, `network`,
the architecture that they are made for, `evaluation`, how networks that train on them are trained,
as far as it is not as usual. There may be `soft_labels` (N, C) float32; `learned_lr` in the record,
the step size that networks take; `view` in the record, which makes of the stored images those that
networks see; and, with the eps `zca` in the record, `whitening_mean` (D,) and `whitening_matrix`
(D, D) float32 of images that are whitened. Images may be kept as pixels too, batch by batch
(`stored_pixels.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.datasets.given import labels_as_int64
from cmidd.datasets.images import to_pixels
from cmidd.datasets.streamed import Images, all_of
from cmidd.datasets.whitening import Whitening
from cmidd.options.recipe import OPTIMIZERS, SCHEDULES, SOFT_LOSSES
from cmidd.storage.growing_file import check_complete
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors
from cmidd.stored_pixels import unpacked
from cmidd.view import View

KIND = "synthetic set"
RECORD = ("class_names", "dataset", "mean", "num_classes", "shape", "std")
"""What the record has at least."""
SUM_TOLERANCE = 1e-3
"""Of probabilities: more than rounding in half precision."""
_LOOKED_AT = 256  # images at once


def file_of(path: Path) -> Path:
    """The file of a set, which the folder of its run names too."""
    return path / "result.safetensors" if path.is_dir() else path


@dataclass(frozen=True)
class SyntheticSet:
    """Images, labels, and the record that says how to use them.

    Args:
        source: `(N, channels, height, width)` float32, normalised, and whitened by `whitening`: a
            tensor, or images that are made when their rows are asked for.
        labels: `(N,)` int64.
        record: what the file says of the set; `mean`, `std` and `class_names` among others.
        soft_labels: `(N, C)` float32 probabilities, where labels were learned.
        whitening: of the images, where they are whitened.

    Example:
        >>> data = cmidd.load_dataset("digits")
        >>> images = data.to_input(data.train.images[:4])
        >>> cmidd.SyntheticSet.of(data, images, data.train.labels[:4]).save("four.safetensors")
        >>> cmidd.SyntheticSet.load("four.safetensors").pixels().shape
        torch.Size([4, 1, 8, 8])
    """

    source: Images
    labels: Tensor
    record: dict[str, Any] = field(default_factory=dict)
    soft_labels: Tensor | None = None
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        eps, recorded = self.whitening and self.whitening.eps, self.record.get("zca")
        if eps != recorded:
            raise ValueError(
                f"whitening: expected one with the record's zca {recorded}, got one with {eps}"
            )

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        images: Images,
        labels: Tensor,
        record: Mapping[str, Any] | None = None,
    ) -> SyntheticSet:
        """Images in the space of what `dataset.to_input` gives, with a record that says so."""
        about = {**dataset.describe(), "class_names": list(dataset.class_names), **(record or {})}
        return cls(images, labels, about, whitening=dataset.whitening)

    @cached_property
    def images(self) -> Tensor:
        """All images in one tensor; a copy, if `source` makes images when they are asked for."""
        return all_of(self.source)

    @property
    def targets(self) -> Tensor:
        """What networks learn: soft labels where there are some, else labels."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def learned_lr(self) -> float | None:
        """The step size that was learned with the images."""
        return self.record.get("learned_lr")

    def seen(self) -> SyntheticSet:
        """The set as networks see it: its images decoded by the view, where it has one."""
        view = View.of_record(self.record)
        if view is None:
            return self
        images, labels = view(self.images, self.labels)
        soft_labels = self.soft_labels
        if soft_labels is not None:
            soft_labels = view(self.images, soft_labels)[1]
        record = {name: value for name, value in self.record.items() if name != "view"}
        record["shape"] = list(images.shape[1:])
        return SyntheticSet(images, labels, record, soft_labels, self.whitening)

    def whiten(self, dataset: Dataset) -> Dataset:
        """`dataset` as networks that train on this set see it: whitened as the set is, or not."""
        return replace(dataset, whitening=self.whitening)

    def save(self, path: Path | str) -> None:
        """Write the file, atomically."""
        tensors = {"images": self.images, "labels": self.labels}
        if self.soft_labels is not None:
            tensors["soft_labels"] = self.soft_labels
        if self.whitening is not None:
            tensors["whitening_mean"] = self.whitening.mean
            tensors["whitening_matrix"] = self.whitening.matrix
        write_tensors(Path(path), KIND, tensors, self.record)

    @classmethod
    def load(cls, path: Path | str) -> SyntheticSet:
        """Read and check the file, or that in the folder of a run."""
        path = file_of(Path(path))
        check_complete(path, KIND)
        tensors, record = read_tensors(path, KIND)
        missing = [name for name in RECORD if name not in record]
        if missing:
            raise FileError(f"{path}: expected a record with {', '.join(RECORD)}, lacks {missing}")
        images: Images
        if "pixels" in tensors:
            try:
                images, labels = unpacked(tensors, record, path)
            except FileError:
                raise
            except (OverflowError, RuntimeError, TypeError, ValueError) as error:
                raise FileError(f"{path}: {error}") from None
            tensors = {}  # nothing else of such a file is checked
        else:
            empty = torch.empty(0)
            images, labels = tensors.get("images", empty), tensors.get("labels", empty)
        if (
            (images.dtype, labels.dtype) != (torch.float32, torch.int64)
            or list(images.shape[1:]) != record["shape"]
            or images.shape[:1] != labels.shape
        ):
            found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
            raise FileError(
                f"{path}: expected N float32 images of {record['shape']} and N int64 labels, got "
                f"{found}"
            )
        if not len(images):
            raise FileError(f"{path}: expected images, got none")
        if isinstance(images, Tensor) and not _is_finite(images):
            raise FileError(f"{path}: expected finite images, got NaN or Inf among them")
        try:
            labels_as_int64(labels, record["num_classes"])
            of_each = {"mean": images.shape[1], "std": images.shape[1]}
            of_each["class_names"] = record["num_classes"]
            for name, count in of_each.items():
                if len(record[name]) != count:
                    raise ValueError(f"expected {count} {name}, got {record[name]}")
            soft_labels = tensors.get("soft_labels")
            if soft_labels is not None:
                check_probabilities(soft_labels, (len(labels), record["num_classes"]))
            _check_learned(record.get("learned_lr"))
            _check_use(record)
            made = cls(images, labels, record, soft_labels, _whitening(tensors, record))
            made._as_pixels(made.seen().source[:1])
        except (OverflowError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path}: {error}") from None
        return made

    def pixels(self) -> Tensor:
        """The images that networks see, as `(N, channels, height, width)` in [0, 1]."""
        return self._as_pixels(self.seen().images)

    def pixels_in_pieces(self) -> Iterator[Tensor]:
        """The same, some at a time where images are made when they are asked for."""
        source = self.seen().source
        for some in [source] if isinstance(source, Tensor) else source.pieces():
            yield self._as_pixels(some)

    def _as_pixels(self, images: Tensor) -> Tensor:
        return to_pixels(images, self.record["mean"], self.record["std"], self.whitening)


def _is_finite(images: Tensor) -> bool:
    """Whether all numbers are, looked at in pieces, as the file may be larger than memory."""
    return all(bool(some.isfinite().all()) for some in torch.split(images, _LOOKED_AT))


def _whitening(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Whitening | None:
    """The whitening of a file, whose two tensors and eps come together or not at all."""
    mean, matrix = tensors.get("whitening_mean"), tensors.get("whitening_matrix")
    eps = record.get("zca")
    if mean is None and matrix is None and eps is None:
        return None
    if mean is None or matrix is None or eps is None:
        raise ValueError(
            "expected whitening_mean, whitening_matrix and zca in the record, all or none, got zca "
            f"{eps} and tensors {sorted(tensors)}"
        )
    if len(mean) != math.prod(record["shape"]):
        raise ValueError(f"expected a whitening of images {record['shape']}, got {len(mean)} means")
    return Whitening(mean, matrix, eps)


def check_probabilities(soft_labels: Tensor, shape: tuple[int, int]) -> None:
    """Raise unless each row has float32 numbers from 0 on that add up to 1."""
    if (soft_labels.dtype, soft_labels.shape) != (torch.float32, shape):
        raise ValueError(
            f"expected float32 soft_labels of {shape}, got {soft_labels.dtype} of "
            f"{tuple(soft_labels.shape)}"
        )
    adds_up = (soft_labels.sum(1) - 1).abs() < SUM_TOLERANCE  # a NaN does not
    wrong = ~((soft_labels >= 0).all(1) & adds_up)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"expected soft_labels from 0 on that add up to 1, got {soft_labels[row].tolist()} at "
            f"row {row}"
        )


def _check_learned(rate: object) -> None:
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if rate is not None and not (is_number and 0 < rate < math.inf):  # type: ignore[operator]
        raise ValueError(f"expected a learned_lr above 0, got {rate!r}")


def _check_use(record: Mapping[str, Any]) -> None:
    """What says how to train networks on the set, if anything does."""
    network, evaluation = record.get("network"), record.get("evaluation", {})
    if network is not None and not isinstance(network, str):
        raise ValueError(f"expected the name of a network, got {network!r}")
    if not isinstance(evaluation, dict) or any(
        type(value) not in _EVALUATION.get(name, ()) for name, value in evaluation.items()
    ):
        raise ValueError(f"expected an evaluation's {', '.join(_EVALUATION)}, got {evaluation!r}")
    drops = evaluation.get("drop_at", 0.0)
    shares = [*(drops if isinstance(drops, list) else [drops])]
    shares += [evaluation.get(name, 0.0) for name in ("cutmix", "drop_again_at")]
    counts = [evaluation.get(name, 1) for name in ("epochs", "batch_size", "drop_by")]
    if (
        not all(type(share) is float and 0 <= share <= 1 for share in shares)
        or not all(count >= 1 for count in counts)
        or not 0 < evaluation.get("lr", 1.0) < math.inf
        or not 0 <= evaluation.get("weight_decay", 0.0) < math.inf
        or evaluation.get("optimizer", "sgd") not in OPTIMIZERS
        or evaluation.get("schedule", "drops") not in SCHEDULES
        or evaluation.get("warm_up", 0) < 0
        or not 0 < evaluation.get("zoom", 1.0) <= 1
        or evaluation.get("soft_loss", "kl") not in SOFT_LOSSES
        or not 0 < evaluation.get("temperature", 1.0) < math.inf
        or not 0 <= evaluation.get("ce_weight", 0.0) < math.inf
    ):
        raise ValueError(
            "expected an evaluation's cutmix and drop_at from 0 to 1, its epochs, batch_size and "
            "drop_by from 1 on, its lr above 0, its weight_decay and warm_up from 0 on, its "
            f"optimizer {' or '.join(OPTIMIZERS)}, its schedule {' or '.join(SCHEDULES)}, its zoom "
            f"above 0 and up to 1, its soft_loss {' or '.join(SOFT_LOSSES)}, its temperature above "
            f"0 and its ce_weight from 0 on, got {evaluation!r}"
        )


_EVALUATION: dict[str, tuple[type, ...]] = {
    "epochs": (int,),
    "augmentation": (str,),
    "batch_size": (int,),
    "cutmix": (float,),
    "drop_at": (float, list),
    "drop_again_at": (float,),  # of older sets
    "drop_by": (float,),
    "lr": (float,),
    "optimizer": (str,),
    "schedule": (str,),
    "warm_up": (int,),
    "weight_decay": (float,),
    "zoom": (float,),
    "soft_loss": (str,),
    "temperature": (float,),
    "temperature_squared": (bool,),
    "ce_weight": (float,),
}
"""What may be said of a recipe of its own, and the types of each."""
