"""The images of a command: its sets, and real ones, as told or as the sets were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmidd import ranks
from cmidd.datasets import Dataset, DatasetNotFound, load_dataset
from cmidd.first_images import random_real_set
from cmidd.options.commands import DataOptions, SetDataOptions
from cmidd.options.fields import AS_PUBLISHED, fill_in
from cmidd.options.names import DATASETS, dataset_key
from cmidd.synthetic import SyntheticSet, file_of

_ORIGIN: dict[str, Any] = {
    "dataset": "digits",
    "data": Path("data"),
    "size": None,
    "held_out": None,
}


def load(data: DataOptions) -> Dataset:
    """The real images."""
    dataset = load_dataset(
        data.dataset,
        data.data,
        size=data.size,
        keep_decoded=int(data.keep_decoded * 2**30),
        on_demand=ranks.count() > 1,  # each needs the images of its classes
    )
    _, height, width = dataset.shape
    if height != width:
        raise ValueError(
            f"dataset: networks see square images, got {height} x {width} in {data.dataset}; "
            "give --size where it is a folder of pictures"
        )
    if data.held_out:
        dataset = dataset.holding_out(data.held_out)
    return dataset.whitened() if data.zca else dataset


def load_for(sets: Sequence[Path], data: SetDataOptions) -> Dataset:
    """The real images that sets were made from, where the options do not say which."""
    origins = {path: _origin(path) for path in sets}
    for path, origin in origins.items():
        _check_same(path, origin, data)
    known = next(iter(origins.values()), _ORIGIN)
    told = ("held_out",) if data.held_out is AS_PUBLISHED else ()
    for path, origin in origins.items():
        if any(origin[name] != known[name] for name in ("name", "size", *told)):
            raise ValueError(
                f"sets: {sets[0]} was made from {_words(known)}, {path} from {_words(origin)}; "
                "give a command for each"
            )
    given, _ = fill_in(data, known)
    try:
        return load(given)
    except DatasetNotFound as error:
        if not origins or data.dataset is not AS_PUBLISHED:
            raise
        raise DatasetNotFound(
            f"dataset: {sets[0]} was made from {_words(known)}, which is not there: {error}"
        ) from None


def load_sets(
    dataset: Dataset, paths: Sequence[Path], random_real: int | None, seed: int
) -> dict[str, SyntheticSet]:
    """Sets by the name that results call them, with random real images where they are asked for."""
    sets = {}
    for path in map(file_of, paths):
        loaded = sets[str(path)] = SyntheticSet.load(path)
        loaded.whiten(dataset).check_made_for(loaded.record, str(path))
    if random_real is not None:
        name = f"random real images, {random_real} per class"
        counts = [random_real] * dataset.num_classes
        sets[name] = random_real_set(dataset, counts, seed, "random_real")
    return sets


def _origin(path: Path) -> dict[str, Any]:
    """How a set's images were asked for, as its run says, or what they were."""
    record = SyntheticSet.load(path).record
    config = record.get("config")
    config = config if isinstance(config, dict) else {}
    asked = str(config.get("dataset", record["dataset"]))
    try:
        key = dataset_key(asked)
    except ValueError:
        raise ValueError(
            f"sets: {path} was made from {asked}, which --dataset cannot load; use it from "
            "Python, with cmidd.evaluate_set"
        ) from None
    size = record["shape"][1] if DATASETS[key].resizes else None
    return {
        "dataset": asked,
        "name": record["dataset"],
        "data": Path(config.get("data", _ORIGIN["data"])),
        "size": config.get("size", size),
        "held_out": record.get("held_out"),
    }


def _check_same(path: Path, origin: dict[str, Any], data: SetDataOptions) -> None:
    """Raise where other images are asked for; what the hub calls them need not be their name."""
    name, size = data.dataset, data.size
    is_other = name is not AS_PUBLISHED and name not in (origin["dataset"], origin["name"])
    if (is_other and not name.startswith("hub:")) or size not in (AS_PUBLISHED, origin["size"]):
        given = {"dataset": name, "size": size}
        raise ValueError(
            f"dataset: {path} was made from {_words(origin)}, got {_words(given)}; leave that out"
        )
    if data.held_out not in (None, AS_PUBLISHED) and data.held_out > (origin["held_out"] or 0):
        raise ValueError(
            f"held_out: {path} was made from {_words(origin)}, so that the images held out now are "
            f"among those it was made from; distil with --held_out {data.held_out:g} first"
        )


def _words(origin: Mapping[str, Any]) -> str:
    told = {name: origin.get(name) for name in ("dataset", "size", "held_out")}
    return " ".join(f"--{k} {v}" for k, v in told.items() if v not in (None, AS_PUBLISHED))
