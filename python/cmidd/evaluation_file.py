"""The JSON of an evaluation, written network by network, and how it goes on.

    {"dataset": ..., "held_out": null or a share, "seed": ..., "command": ..., "versions": {...},
     "results": [{"set": "runs/dm/result.safetensors", "images": N, "crc32": ...,
                  "evaluations": [{"network": "convnet", "accuracies": [...], "mean": ..., "std":
                                   ..., "recipe": {...}}]}]}

`crc32` is the checksum of the images and labels that networks learned from. `command` has a line
for each command that added results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmidd.evaluate import Accuracy, Store
from cmidd.options.recipe import Recipe
from cmidd.storage.going_on import check_new, check_same, differences
from cmidd.storage.output import write_text
from cmidd.storage.tensor_file import FileError, checksum
from cmidd.synthetic import SyntheticSet


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
        if path.exists():
            before = _read(path)
            there = {name: before.get(name) for name in settings}
            check_same(f"{path} is an evaluation", differences(there, settings))
            self._results = before["results"]
            commands = [*str(before.get("command", "")).splitlines(), about["command"]]
            about = {**about, "command": "\n".join(dict.fromkeys(commands))}
        self._head = {**settings, **about}

    def of(self, name: str, synthetic_set: SyntheticSet) -> Store:
        """The results of one set."""
        learned = {"images": synthetic_set.images, "targets": synthetic_set.targets}
        settings = {"images": len(synthetic_set.labels), "crc32": checksum(learned)}
        for result in self._results:
            if result["set"] == name:
                there = {key: result.get(key) for key in settings}
                what = f"{self.path} has results of another {name}"
                check_same(what, differences(there, settings))
                return _OfSet(self, result)
        result = {"set": name, **settings, "evaluations": []}
        return _OfSet(self, result)

    def keep(self, result: dict[str, Any]) -> None:
        """Write the file with this result in it."""
        if not any(each is result for each in self._results):
            self._results.append(result)
        write_text(self.path, json.dumps({**self._head, "results": self._results}, indent=1) + "\n")


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
        check_same(what, differences(there["recipe"], asdict(recipe)))
        return tuple(there["accuracies"])

    def keep(self, accuracy: Accuracy) -> None:
        there = self._of_network(accuracy.network)
        if there is None:
            there = {}
            self.result["evaluations"].append(there)
        there.update(accuracy.as_record())
        self.file.keep(self.result)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        for result in record["results"]:
            str(result["set"])
            for evaluation in result["evaluations"]:
                str(evaluation["network"])
                asdict(Recipe(**evaluation["recipe"]))
                sum(evaluation["accuracies"])
        return dict(record)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FileError(
            f"{path}: expected the JSON that cmidd evaluate writes ({type(error).__name__}: "
            f"{error})"
        ) from None
