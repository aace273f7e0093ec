"""The folder of a run: its configuration, log and checkpoint, and how it goes on after a kill.

    config.yaml              what was asked for, with every default filled in
    log.jsonl                one line of numbers each time the run reports
    tensorboard/             the same for TensorBoard
    checkpoint.safetensors   tensors and counters, and how long the log was when they were saved
    result.safetensors       written last: a folder that has it is finished

Every file but the logs is replaced atomically, and the log is cut back to where the checkpoint
knew it, so a run killed at any moment goes on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import cmikernels
from cmidd.seeds import STREAMS
from cmidd.storage.output import write_text
from cmidd.storage.tensor_file import FileError, read_tensors, write_tensors

KIND = "checkpoint"


class RunFolder:
    """One run's files; `log` and `save_checkpoint` work inside `logging`."""

    def __init__(self, path: Path, config: Mapping[str, Any], *, resume: bool) -> None:
        """Check that the folder is new or belongs to the same run; nothing is written yet."""
        self.path = path
        self.result = path / "result.safetensors"
        self._log_path = path / "log.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self._config = path / "config.yaml"
        self.config = dict(config)
        if self._config.exists():
            self._check_same(resume)
        elif path.exists() and any(file.suffix != ".partial" for file in path.iterdir()):
            raise FileExistsError(
                f"out: {path} holds something else than a run; name another folder"
            )
        self.finished = self.result.exists()

    def _check_same(self, resume: bool) -> None:
        if not resume:
            raise FileExistsError(
                f"out: {self.path} holds a run already; add --resume to go on with it, or name "
                "another folder"
            )
        try:
            before = yaml.safe_load(self._config.read_text())
            changed = [
                f"{name}: {before.get(name)!r} there, {self.config.get(name)!r} now"
                for name in {**before, **self.config}
                if before.get(name) != self.config.get(name)
            ]
        except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
            raise FileError(f"{self._config}: expected the configuration of a run") from None
        if changed:
            raise ValueError(
                f"resume: {self.path} is a run with other settings ({'; '.join(changed)}); give "
                "the same ones, or name another folder"
            )

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.checkpoint.exists()

    def load_checkpoint(
        self, made_with: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], int] | None:
        """Tensors and the number of finished iterations, or None where nothing was saved yet.

        `made_with`: records of the files that the run reads, which are to be what they were.

        From here on the folder is this run's: its configuration is written, its log cut back.
        """
        write_text(self._config, yaml.safe_dump(self.config, sort_keys=False))
        if not self.checkpoint.exists():
            self._cut_log(0)
            return None
        tensors, record = read_tensors(self.checkpoint, KIND)
        length, iteration = record.get("log_bytes"), record.get("iteration")
        if not isinstance(length, int) or not isinstance(iteration, int):
            raise FileError(f"{self.checkpoint}: expected log_bytes and iteration, got {record}")
        if record.get("streams") != STREAMS:
            raise FileError(
                f"{self.checkpoint}: was written by a cmidd whose draws had other names, so the "
                "run cannot go on as it began; begin another, for which "
                f"--init=file:{self.checkpoint} takes its images"
            )
        for name, expected in (made_with or {}).items():
            if record.get("made_with", {}).get(name) != expected:
                raise ValueError(
                    f"resume: {self.path} was begun with another {name} than the one that is there "
                    "now; put that back, or name another folder"
                )
        self._cut_log(length)
        return tensors, iteration

    def _cut_log(self, length: int) -> None:
        with self._log_path.open("ab") as log:
            if log.tell() < length:
                raise FileError(
                    f"{self._log_path}: expected at least the {length} bytes that the checkpoint "
                    f"knows, got {log.tell()}"
                )
            log.truncate(length)

    def save_checkpoint(
        self, iteration: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None
    ) -> None:
        """Save what `load_checkpoint` gives back; `about` stands in the file's record."""
        self._log.flush()
        os.fsync(self._log.fileno())
        record = {**(about or {}), "iteration": iteration, "log_bytes": self._log.tell()}
        record["streams"] = STREAMS
        write_tensors(self.checkpoint, KIND, tensors, record)

    @contextlib.contextmanager
    def logging(self, first_iteration: int) -> Iterator[None]:
        """While it lasts, `log` writes; lines of `first_iteration` and later are new."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.path / "tensorboard"
        board = SummaryWriter(folder, purge_step=first_iteration if folder.exists() else None)
        with self._log_path.open("ab") as self._log, contextlib.closing(board) as self._board:
            yield

    def log(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Add a line to both logs."""
        line = json.dumps({"iteration": iteration, **numbers})
        self._log.write(line.encode() + b"\n")
        self._log.flush()
        for name, number in numbers.items():
            self._board.add_scalar(name, number, iteration)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of `log.jsonl`; a last line cut short by a kill is left out."""
    try:
        whole = path.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError:
        lines = [None]
    if not all(isinstance(line, dict) for line in lines):
        raise FileError(f"{path}: expected a JSON object in each line")
    return lines


def versions() -> dict[str, str]:
    """Versions recorded with every result."""
    return {
        "cmikernels": cmikernels.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
