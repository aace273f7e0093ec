"""Soft labels of a set in a file: the logits of teachers for every image that training sees.

    logits (epochs, N, C) float16    in the order in which an epoch's batches have the images

All that is drawn to train networks is a function of a seed, the epoch and the step. So the file
holds no crops, flips and boxes of CutMix, but in its record the seed and what the drawing goes by;
training draws the same and reads the labels of a batch, which are rows side by side. The file grows
epoch by epoch, as `growing_file.py` says, and is read an epoch at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.options.recipe import Recipe
from cmidd.options.relabel import SEEDS
from cmidd.seeds import STREAMS, seed_of
from cmidd.storage.growing_file import CRC_OF, MARKS, check_complete, check_piece
from cmidd.storage.tensor_file import FileError, InPieces, bytes_of, checksum, opened
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import Teacher

KIND = "set of soft labels"
LOGITS = "logits"
DRAWS = ("epochs", "batch_size", "augmentation", "zoom", "cutmix")
"""What of a recipe the images that networks see depend on, beside the seed."""
_COUNTS = ("images", "num_classes", "epochs", "batch_size")
_RECORD: dict[str, type] = {
    **dict.fromkeys((*_COUNTS, "set_crc32", "seed", "streams"), int),
    **dict.fromkeys(("zoom", "cutmix"), float),
    "augmentation": str,
    "teachers": list,
}
"""What the record has at least, and the type of each."""


class SoftLabels(Teacher):
    """A complete file of soft labels, of which the labels of one epoch are in memory."""

    def __init__(self, path: Path, record: dict[str, Any], crc32: int) -> None:
        self.path, self._about = path, record
        self.about = f"soft labels of {path}"
        self.record = {"labels": crc32}
        self.nbytes = path.stat().st_size
        self.draws = {name: record[name] for name in DRAWS}
        self.seed = draw_seed(record["seed"])
        self._epoch: tuple[int, Tensor] | None = None

    @classmethod
    def load(cls, path: Path | str) -> SoftLabels:
        """Read and check how the file begins; labels are checked when their epoch is read."""
        path = Path(path)
        check_complete(path, KIND)
        with opened(path, KIND) as (file, record):
            _check_record(path, record)
            epochs = record["epochs"]
            expected = {
                LOGITS: ("F16", [epochs, record["images"], record["num_classes"]]),
                CRC_OF + LOGITS: ("I64", [epochs]),
                MARKS: ("U8", [epochs]),
            }
            found = {
                name: (piece.get_dtype(), list(piece.get_shape()))
                for name in file.keys()  # noqa: SIM118
                for piece in [file.get_slice(name)]
                if name in expected
            }
            if found != expected:
                raise FileError(f"{path}: expected tensors {expected}, got {found}")
            done = int((file.get_tensor(MARKS) == 1).sum())
            if done < epochs:
                raise FileError(f"{path}: only {done} of {epochs} epochs are there")
            crc32 = zlib.crc32(bytes_of(file.get_tensor(CRC_OF + LOGITS)))
        if record["streams"] != STREAMS:
            raise FileError(
                f"{path}: expected labels of images that are drawn as today (streams {STREAMS}), "
                f"got streams {record['streams']}; relabel the set"
            )
        return cls(path, record, crc32)

    def check(self, synthetic_set: SyntheticSet, dataset: Dataset, recipe: Recipe) -> None:
        """Raise unless just this set was labelled, and its images as a recipe draws them."""
        super().check(synthetic_set, dataset, recipe)
        what = f"labels: {self.path}"
        dataset.check_made_for(self._about, what)
        dataset.check_unseen(self._about, what)
        of_set = {
            "set_crc32": checksum_of(synthetic_set),
            "images": len(synthetic_set.seen().labels),
        }
        if any(self._about[name] != value for name, value in of_set.items()):
            raise ValueError(
                f"{what} has those of another set, or of this one before it was changed; relabel it"
            )
        strategy = Strategy.parse(recipe.augmentation, mirror=dataset.mirror)
        asked = {name: getattr(recipe, name) for name in DRAWS} | {"augmentation": str(strategy)}
        unused = () if "zoom" in strategy.operations else ("zoom",)
        for name, value in self.draws.items():
            if name in unused:
                continue
            is_there = asked[name] <= value if name == "epochs" else asked[name] == value
            if not is_there:
                most = "at most " if name == "epochs" else ""
                raise ValueError(
                    f"{name}: expected {most}{value}, which {self.path} has labels for, got "
                    f"{asked[name]}; leave it out, or relabel the set with it"
                )

    def logits(
        self,
        epoch: int,
        places: slice,
        images: Tensor,
        num_classes: int,  # noqa: ARG002
    ) -> Tensor:
        """The labels at these places, the same for all networks."""
        labels = self.of_epoch(epoch)[places].to(images)
        return labels.expand(len(images), *labels.shape)

    def of_epoch(self, epoch: int) -> Tensor:
        """Logits `(N, C)` float16 on the CPU, in the order of the epoch, from 0 on."""
        if self._epoch is None or self._epoch[0] != epoch:
            with opened(self.path, KIND) as (file, record):
                if record != self._about:
                    raise FileError(f"{self.path}: another file has taken its place; begin again")
                labels: Tensor = file.get_slice(LOGITS)[epoch].clone()  # a slice is mapped
                crc = file.get_slice(CRC_OF + LOGITS)[epoch]
            check_piece(self.path, f"{LOGITS} of epoch {epoch + 1}", labels, crc)
            if not labels.isfinite().all():
                raise FileError(
                    f"{self.path}: expected finite labels, got others in epoch {epoch + 1}"
                )
            self._epoch = epoch, labels
        return self._epoch[1]


def _check_record(path: Path, record: Mapping[str, Any]) -> None:
    """Raise unless a record says what was labelled, and how its images are drawn."""
    is_whole = all(type(record.get(name)) is kind for name, kind in _RECORD.items())
    if (
        not is_whole
        or any(record[name] < 1 for name in _COUNTS)
        or not 0 <= record["cutmix"] <= 1
        or not 0 < record["zoom"] <= 1
        or not 0 <= record["seed"] < SEEDS
        or not _is_share_or_none(record.get("held_out"))
        or not all(type(crc32) is int for crc32 in record["teachers"])
    ):
        raise FileError(
            f"{path}: expected a record with {', '.join(_COUNTS)} from 1 on, cutmix from 0 to 1, "
            "zoom above 0 and up to 1, an augmentation, teachers by their checksums, a share "
            "held_out if any, and the numbers set_crc32, seed and streams, the seed from 0 on, got "
            f"{dict(record)}"
        )
    try:
        Strategy.parse(record["augmentation"])
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def _is_share_or_none(value: object) -> bool:
    return value is None or (type(value) is float and 0 <= value < 1)


def draw_seed(seed: int) -> int:
    """Of all that is drawn for images that are relabelled by this seed."""
    return seed_of(seed, "soft labels")


def checksum_of(synthetic_set: SyntheticSet) -> int:
    """Of all that networks learn from in a set: what they see of it, and how it is whitened."""
    seen, whitening = synthetic_set.seen(), synthetic_set.whitening
    tensors: dict[str, Tensor | InPieces] = {"images": seen.source, "targets": seen.targets}
    if whitening is not None:
        tensors |= {"whitening_mean": whitening.mean, "whitening_matrix": whitening.matrix}
    return checksum(tensors)


def items_of(images: int, num_classes: int) -> Mapping[str, Tensor]:
    """What an epoch of so many images takes in a file."""
    return {LOGITS: torch.empty(images, num_classes, dtype=torch.float16, device="meta")}
