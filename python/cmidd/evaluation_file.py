"""The JSON of an evaluation, written network by network, and how it goes on.

    {"dataset": ..., "held_out": null or a share, "seed": ..., "command": ..., "versions": {...},
     "results": [{"set": "runs/dm/result.safetensors", "images": N, "crc32": ...,
                  "bytes": {"images": ..., "labels": ...},
                  "evaluations": [{"network": "convnet", "accuracies": [...], "mean": ..., "std":
                                   ..., "recipe": {...}}]}],
     "ddranking": {"compared": [{"set": "as many random real images", "images": N, "crc32": ...,
                                 "network": ..., "accuracies": [...], ...}],
                   "scores": [{"set": "runs/dm/result.safetensors", "network": "convnet",
                               "lrs": {"mean": ..., "std": ..., "of_networks": [...]}, ...}]}}

`crc32` is the checksum of the images and labels that networks learned from. `taught_by` is there
where they learned logits: "about", in words, with which the name of the set ends, and the checksum
of the soft labels or of the teachers. `command` has a line for each command that added results.
`ddranking` is there where its scores were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cmidd import ranks
from cmidd.evaluate import Accuracy, Store
from cmidd.options.recipe import Recipe, as_today
from cmidd.storage.going_on import check_new, check_same, differences
from cmidd.storage.output import write_text
from cmidd.storage.tensor_file import FileError, checksum
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import Teacher


class EvaluationFile:
    """The file while it is filled; whoever fills it holds the lock of its path."""

    def __init__(
        self, path: Path, settings: Mapping[str, Any], about: Mapping[str, Any], *, resume: bool
    ) -> None:
        """Begin, or go on with the results that are there.

        Args:
            path: the file.
            settings: what all results have in common (dataset, seed), and has to be as it was.
            about: what the file says beside that, and may be another.
            resume: whether a file that is there may be gone on with.
        """
        check_new(path, resume=resume)
        self.path = path
        self._results: list[dict[str, Any]] = []
        self._compared: list[dict[str, Any]] = []
        self._scores: list[dict[str, Any]] = []
        if path.exists():
            before = _read(path)
            there = {name: before.get(name) for name in settings}
            check_same(f"{path} is an evaluation", differences(there, settings))
            self._results = before["results"]
            ranking = before.get("ddranking", {"compared": [], "scores": []})
            self._compared, self._scores = ranking["compared"], ranking["scores"]
            commands = [*str(before.get("command", "")).splitlines(), about["command"]]
            about = {**about, "command": "\n".join(dict.fromkeys(commands))}
        self._head = {**settings, **about}

    def of(self, name: str, synthetic_set: SyntheticSet, teacher: Teacher | None = None) -> Store:
        """The results of one set, whose labels networks learn or the logits of a teacher."""
        settings = _learned_from(synthetic_set)
        if teacher is not None:
            settings["taught_by"] = {"about": teacher.about, **teacher.record}
        nbytes = _bytes_of(synthetic_set, teacher)
        for result in self._results:
            if result["set"] == name:
                there = {key: result.get(key) for key in settings}
                what = f"{self.path} has results of another {name}"
                check_same(what, differences(there, settings))
                result["bytes"] = nbytes
                return _OfSet(self, result)
        result = {"set": name, **settings, "bytes": nbytes, "evaluations": []}
        return _OfSet(self, result)

    def keep(self, result: dict[str, Any]) -> None:
        """Write the file with this result in it."""
        if not any(each is result for each in self._results):
            self._results.append(result)
        self._write()

    def compared(self, name: str, images: SyntheticSet) -> Store:
        """The results of what the scores of DD-Ranking compare, which may be sets' results too."""
        return _Compared(self, {"set": name, **_learned_from(images)})

    def trained(self, crc32: int) -> Iterator[dict[str, Any]]:
        """All that is known of networks that learned from images of this checksum."""
        yield from (each for each in self._compared if each["crc32"] == crc32)
        for result in self._results:
            if result.get("crc32") == crc32:
                yield from result["evaluations"]

    def keep_compared(self, result: dict[str, Any]) -> None:
        """Write the file with this result in the place of an earlier one of the same networks."""
        self._compared = _with(self._compared, result, "crc32", "network", "recipe")
        self._write()

    def keep_scores(self, name: str, scores: Mapping[str, Any]) -> None:
        """Write the file with these scores of a set."""
        self._scores = _with(self._scores, {"set": name, **scores}, "set", "network")
        self._write()

    def _write(self) -> None:
        if not ranks.is_first():  # which has the same results
            return
        record = {**self._head, "results": self._results}
        if self._compared or self._scores:
            record["ddranking"] = {"compared": self._compared, "scores": self._scores}
        write_text(self.path, json.dumps(record, indent=1) + "\n")


def results_of(path: Path, synthetic_set: SyntheticSet) -> dict[str, Any]:
    """What the file at `path` has of networks that learned this set's labels, and its judges."""
    crc32, record = _learned_from(synthetic_set)["crc32"], _read(path)
    found = [
        each for each in record["results"] if each.get("crc32") == crc32 and "taught_by" not in each
    ]
    evaluations = [evaluation for each in found for evaluation in each["evaluations"]]
    return {"held_out": record.get("held_out"), "evaluations": evaluations}


def _learned_from(images: SyntheticSet) -> dict[str, Any]:
    learned = {"images": images.source, "targets": images.targets}
    return {"images": len(images.labels), "crc32": checksum(learned)}


def _bytes_of(images: SyntheticSet, teacher: Teacher | None) -> dict[str, int]:
    """What networks learn from: stored images as uint8, and labels, or what teaches in their place.

    A label that is a class takes a byte, or two beyond 256 classes.
    """
    if teacher is not None:
        labels = teacher.nbytes
    elif images.soft_labels is not None:
        labels = images.soft_labels.nbytes
    else:
        labels = len(images.labels) * (1 if images.record["num_classes"] <= 256 else 2)
    return {"images": images.source.shape.numel(), "labels": labels}


def _with(entries: list[dict[str, Any]], new: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """Entries with a new one in the place of that with the same keys."""
    same = [all(each[key] == new[key] for key in keys) for each in entries]
    if True in same:
        return [new if is_same else each for each, is_same in zip(entries, same, strict=True)]
    return [*entries, new]


class _Compared(Store):
    def __init__(self, file: EvaluationFile, about: dict[str, Any]) -> None:
        self.file, self.about = file, about
        self.path = file.path

    def known(self, network: str, recipe: Recipe) -> tuple[float, ...]:
        found = [
            tuple(each["accuracies"])
            for each in self.file.trained(self.about["crc32"])
            if each["network"] == network and not _other_recipe(each, recipe)
        ]
        return max(found, key=len, default=())

    def keep(self, accuracy: Accuracy) -> None:
        self.file.keep_compared({**self.about, **accuracy.as_record()})


class _OfSet(Store):
    def __init__(self, file: EvaluationFile, result: dict[str, Any]) -> None:
        self.file, self.result = file, result
        self.path = file.path

    def _of_network(self, network: str) -> dict[str, Any] | None:
        found = (each for each in self.result["evaluations"] if each["network"] == network)
        return next(found, None)

    def known(self, network: str, recipe: Recipe) -> tuple[float, ...]:
        there = self._of_network(network)
        if there is None:
            return ()
        what = f"{self.file.path} has {network} on {self.result['set']}"
        check_same(what, _other_recipe(there, recipe))
        return tuple(there["accuracies"])

    def keep(self, accuracy: Accuracy) -> None:
        there = self._of_network(accuracy.network)
        if there is None:
            there = {}
            self.result["evaluations"].append(there)
        there.update(accuracy.as_record())
        self.file.keep(self.result)


def _other_recipe(evaluation: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """In what networks of an evaluation were trained otherwise."""
    return differences(as_today(evaluation["recipe"]), recipe.as_record())


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        for result in record["results"]:
            str(result["set"])
            for evaluation in result["evaluations"]:
                _check_evaluation(evaluation)
        if "ddranking" in record:
            for compared in record["ddranking"]["compared"]:
                int(compared["crc32"])
                _check_evaluation(compared)
            for scores in record["ddranking"]["scores"]:
                str(scores["set"]), str(scores["network"])
        return dict(record)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FileError(
            f"{path}: expected the JSON that cmidd evaluate writes ({type(error).__name__}: "
            f"{error})"
        ) from None


def _check_evaluation(evaluation: Mapping[str, Any]) -> None:
    str(evaluation["network"])
    Recipe.of_record(evaluation["recipe"])
    sum(evaluation["accuracies"])
