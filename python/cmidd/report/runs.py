"""What a report takes from the folder of a run, finished or not, or from the file of a set.

Of a checkpoint the images alone are taken; what they are images of then comes from the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from cmidd.datasets import Dataset, load_dataset
from cmidd.datasets.streamed import KEEP_DECODED
from cmidd.storage.run_folder import KIND as CHECKPOINT
from cmidd.storage.run_folder import read_log
from cmidd.storage.tensor_file import FileError, read_tensors
from cmidd.synthetic import SyntheticSet, file_of

# What the records of sets from the same images share.
_OF_DATASET = ("dataset", "shape", "num_classes", "mean", "std", "zca", "class_names")


@dataclass(frozen=True)
class RunSummary:
    """A run as a report shows it."""

    name: str
    synthetic: SyntheticSet
    config: dict[str, Any]
    log: list[dict[str, float]]
    iteration: int | None  # of the checkpoint that the images are from; None: it is finished

    @property
    def method(self) -> str:
        """What distilled it, in capitals, or the file of another tool."""
        if self.converted:
            return f"another tool ({self.converted.get('file')})"
        return str(self.config.get("method", "unknown")).upper()

    @property
    def converted(self) -> dict[str, Any]:
        """Where a set of another tool came from; nothing of one of ours."""
        found = self.synthetic.record.get("converted")
        return found if isinstance(found, dict) else {}

    @cached_property
    def seen(self) -> SyntheticSet:
        """Its set as networks see it."""
        return self.synthetic.seen()

    @property
    def images_per_class(self) -> int:
        """Stored images of the class that has most."""
        return int(torch.bincount(self.synthetic.labels).max())

    @property
    def has_cmi(self) -> bool:
        """Whether CMI was part of what it minimised."""
        if self.iteration is None:
            return bool(self.synthetic.record.get("cmi_weight"))
        return any(line.get("cmi") for line in self.log)

    @property
    def cmi(self) -> str:
        """The regulariser in words."""
        if not self.has_cmi:
            return "CMI not known" if self.converted else "no CMI"
        weight = self.synthetic.record.get("cmi_weight")
        return "CMI" if weight is None else f"CMI weight {weight:g}"

    @property
    def mim_weight(self) -> float:
        """The weight of InfoNCE, 0 without it."""
        source = self.config if self.iteration is not None else self.synthetic.record
        found = source.get("mim_weight")
        return float(found) if isinstance(found, int | float) else 0.0

    @property
    def terms(self) -> str:
        """What was added to the method's loss, in words."""
        return f"{self.cmi}, InfoNCE weight {self.mim_weight:g}" if self.mim_weight else self.cmi

    def about(self) -> str:
        """Method, size, what was added, what networks need to know of it, and how far it is."""
        count, made = self.images_per_class, self.synthetic
        images = f"{count} {'image' if count == 1 else 'images'} per class"
        words = [self.method, images, self.terms]
        if len(self.seen.labels) != len(made.labels):
            words.append(f"seen as {len(self.seen.labels) // len(made.labels)} images each")
        if made.learned_lr is not None:
            words.append(f"learned step size {made.learned_lr:.3g}")
        if made.soft_labels is not None:
            words.append("soft labels")
        if made.whitening is not None:
            words.append("whitened (ZCA)")
        remark = "" if self.iteration is None else f"; not finished, iteration {self.iteration:,}"
        return f"{', '.join(words)}{remark}"


def read_runs(
    folders: Sequence[Path], *, with_dataset: bool
) -> tuple[list[RunSummary], Dataset | None]:
    """Runs of one dataset, and the dataset itself where it is asked for or a run needs it.

    Args:
        folders: that `cmidd distill` wrote to, and files of sets.
        with_dataset: load it even though every run is finished.
    """
    if not folders:
        raise ValueError("runs: expected at least one folder of a run, got none")
    configs = [_read_config(folder) for folder in folders]
    dataset = None
    if with_dataset or not all(file_of(folder).exists() for folder in folders):
        first = configs[0]
        # A run from Python need not say where its data are.
        folder = first.get("data", "data")
        keep = first.get("keep_decoded", KEEP_DECODED / 2**30)
        dataset = load_dataset(
            first["dataset"], folder, size=first.get("size"), keep_decoded=int(keep * 2**30)
        )
        if first.get("held_out"):
            dataset = dataset.holding_out(first["held_out"])
        if first.get("zca"):  # which runs from before whitening lack
            dataset = dataset.whitened()
    runs = [
        _read_run(folder, config, dataset) for folder, config in zip(folders, configs, strict=True)
    ]
    _check_same(runs, dataset)
    return runs, dataset


def _read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        record = SyntheticSet.load(folder).record
        config = record.get("config")
        found = config if isinstance(config, dict) else {}
        return {"dataset": record["dataset"], **found, "zca": record.get("zca") is not None}
    path = folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(
            f"runs: {folder} is not the folder of a run (it has no config.yaml); name the folder "
            "that cmidd distill wrote to, or the file of a set"
        )
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    needed = ("method", "dataset")
    if not isinstance(config, dict) or any(name not in config for name in needed):
        raise FileError(
            f"{path}: expected the configuration of a run, with {', '.join(needed)}; name a "
            "folder that cmidd distill wrote to"
        )
    return config


def _read_run(folder: Path, config: dict[str, Any], dataset: Dataset | None) -> RunSummary:
    if file_of(folder).exists():
        synthetic, iteration = SyntheticSet.load(folder), None
    else:
        assert dataset is not None
        path = folder / "checkpoint.safetensors"
        synthetic, iteration = _unfinished(folder, path, config, dataset)
    log = _read_numbers(folder / "log.jsonl", bool(synthetic.record.get("cmi_weight")))
    return RunSummary(str(folder), synthetic, config, log, iteration)


def _read_numbers(path: Path, with_cmi: bool) -> list[dict[str, float]]:
    """The log; none where a result was copied alone.

    Without CMI lines have no number for it, and those that an older cmidd wrote have 0.
    """
    lines = read_log(path) if path.exists() else []
    needed = ("iteration", "loss", "cmi") if with_cmi else ("iteration", "loss")
    if any(not line.keys() >= {*needed} for line in lines) or not all(
        isinstance(value, int | float) for line in lines for value in line.values()
    ):
        raise FileError(f"{path}: expected {', '.join(needed)} in each line, and numbers alone")
    return lines


def _unfinished(
    folder: Path, path: Path, config: dict[str, Any], dataset: Dataset
) -> tuple[SyntheticSet, int]:
    """The images of a checkpoint and its iteration."""
    if bool(config.get("zca")) != (dataset.whitening is not None):
        raise ValueError(
            f"runs: expected zca {dataset.whitening is not None} as in the first of them, got "
            f"{config.get('zca')} in {folder}; make a report for each"
        )
    if not path.exists():
        raise FileNotFoundError(
            f"runs: {folder} has no result.safetensors and no checkpoint.safetensors yet; there "
            "is nothing to show before the first checkpoint"
        )
    tensors, record = read_tensors(path, CHECKPOINT)
    if not isinstance(record.get("iteration"), int):
        raise FileError(f"{path}: expected its iteration, got {record}")
    images = tensors.get("images", torch.empty(0))
    per_class, rest = divmod(len(images), dataset.num_classes)
    if tuple(images.shape[1:]) != tuple(dataset.shape) or rest or not per_class:
        raise FileError(
            f"{path}: expected images {tuple(dataset.shape)}, equally many of each of the "
            f"{dataset.num_classes} classes of {dataset.name}, got {tuple(images.shape)} of "
            f"{config['dataset']}"
        )
    labels = torch.arange(dataset.num_classes).repeat_interleave(per_class)
    about: dict[str, Any] = {name: record[name] for name in ("view", "made_with") if name in record}
    shown = SyntheticSet.of(dataset, images, labels, about)
    return shown, record["iteration"]


def _check_same(runs: Sequence[RunSummary], dataset: Dataset | None) -> None:
    """Raise unless all runs distil the same images, normalised in the same way."""
    first = runs[0].synthetic.record
    for run in runs:
        if dataset is not None:
            dataset.check_made_for(run.synthetic.record, f"runs: {run.name}")
        for name in _OF_DATASET:
            ours = run.synthetic.record.get(name)
            if ours != first.get(name):
                raise ValueError(
                    f"runs: expected {name} {first.get(name)} as in {runs[0].name}, got {ours} in "
                    f"{run.name}; make a report for each dataset"
                )
