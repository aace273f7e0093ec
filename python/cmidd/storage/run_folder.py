"""The folder of a run: its configuration, log and checkpoint, and how it goes on after a kill.

    config.yaml              what was asked for, with every default filled in
    log.jsonl                one line of numbers each time the run reports
    tensorboard/             the same for TensorBoard
    checkpoint.safetensors   tensors and counters, and how long the log was when they were saved
    result.safetensors       written last: the set after the iterations that its record tells
    .lock                    while a process writes here

Every file but the logs is replaced atomically, and the log is cut back to where the checkpoint
knew it, so a run killed at any moment goes on as if nothing had happened. A run that is finished
goes on where more iterations are asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

import cmikernels
from cmidd.seeds import STREAMS
from cmidd.storage.going_on import check_same, differences
from cmidd.storage.lock import LOCK_NAME, locked
from cmidd.storage.output import write_text, writing
from cmidd.storage.tensor_file import FileError, read_tensors, record_of, write_tensors

KIND = "checkpoint"
# What the result does not depend on.
_MAY_CHANGE = ("checkpoint_every", "data", "device", "keep_decoded", "report_every")
_OWN = (".partial", LOCK_NAME)  # how names end of what is left of a process that ended


class Begun(NamedTuple):
    """Where a run goes on."""

    iteration: int  # iterations that are finished
    update: int  # updates that are done of the next one
    tensors: dict[str, Tensor]


class RunFolder:
    """One run's files; everything that is written is written inside `locked`."""

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        *,
        resume: bool,
        may_grow: Sequence[str] = ("iterations",),
    ) -> None:
        """Check that the folder is new or belongs to the same run; nothing is written yet.

        `may_grow`: counts in the configuration of which more may be asked for.
        """
        self.path = path
        self._may_grow = may_grow
        self.resume = resume
        self.result = path / "result.safetensors"
        self.log_path = path / "log.jsonl"
        self.checkpoint = path / "checkpoint.safetensors"
        self._config = path / "config.yaml"
        self.config = dict(config)
        self._check()

    def _check(self) -> None:
        check_folder(self.path, resume=self.resume)
        if not self._config.exists():
            return
        try:
            before, now = yaml.safe_load(self._config.read_text()), self.config
            if before.get("method") != now.get("method"):  # most of the rest then differs too
                before, now = ({"method": each.get("method")} for each in (before, now))
            changed = differences(before, now, may_change=_MAY_CHANGE, may_grow=self._may_grow)
        except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError):
            raise FileError(f"{self._config}: expected the configuration of a run") from None
        check_same(f"{self.path} is a run", changed)
        if self.result.exists() and not self.finished and not self.has_checkpoint:
            raise FileNotFoundError(
                f"resume: {self.path} is finished and has no checkpoint.safetensors any more, from "
                f"which more iterations could go on; begin another run, for which "
                f"--init=file:{self.result} takes its images"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While it lasts, no other process writes here; the folder is made if there is none."""
        with locked(self.path, folder=True):
            self._check()  # another process may have been here since
            yield

    @property
    def finished(self) -> bool:
        """Whether there is a result of as many iterations as are asked for."""
        if not self.result.exists():
            return False
        made_with = record_of(self.result).get("config", {})
        return bool(made_with.get("iterations") == self.config.get("iterations"))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.checkpoint.exists()

    def load_checkpoint(self, made_with: Mapping[str, Any] | None = None) -> Begun | None:
        """What was saved, or None where nothing was saved yet.

        `made_with`: records of the files that the run reads, which are to be what they were.

        From here on the folder is this run's: its configuration is written, its log cut back.
        """
        if not self.checkpoint.exists():
            self._begin(0)
            return None
        tensors, record = read_tensors(self.checkpoint, KIND)
        missing = [name for name in ("log_bytes", "iteration") if type(record.get(name)) is not int]
        if missing:
            raise FileError(
                f"{self.checkpoint}: damaged or edited: no {' and no '.join(missing)} in its record"
            )
        length, iteration = record["log_bytes"], record["iteration"]
        if record.get("streams") != STREAMS:
            raise FileError(
                f"{self.checkpoint}: was written by a cmidd whose draws had other names, so the "
                "run cannot go on as it began; begin another, for which "
                f"--init=file:{self.checkpoint} takes its images"
            )
        for name, expected in (made_with or {}).items():
            before = record.get("made_with", {}).get(name) or {}
            if changed := differences(before, expected, may_change=("command",)):
                raise ValueError(
                    f"resume: {self.path} was begun with another {name} than the one that is there "
                    f"now ({'; '.join(changed)}); put that back, or name another folder"
                )
        self._begin(length)
        return Begun(iteration, record.get("update", 0), tensors)

    def begin(self) -> None:
        """Make the folder this run's: write its configuration."""
        self._check()  # another process may have been here since
        self._write_config()

    def _write_config(self) -> None:
        write_text(self._config, yaml.safe_dump(self.config, sort_keys=False))

    def _begin(self, length: int) -> None:
        """Make the folder this run's, with so many bytes of log."""
        self._write_config()
        with writing(self.log_path), self.log_path.open("ab") as log:
            if log.tell() < length:
                raise FileError(
                    f"{self.log_path}: expected at least the {length} bytes that the checkpoint "
                    f"knows, got {log.tell()}"
                )
            log.truncate(length)

    def save_checkpoint(
        self,
        iteration: int,
        tensors: Mapping[str, Tensor],
        about: Mapping[str, Any] | None = None,
        *,
        update: int = 0,
    ) -> None:
        """Save what `load_checkpoint` gives back; `about` stands in the file's record."""
        with writing(self.log_path):
            self._log.flush()
            os.fsync(self._log.fileno())
        record = {**(about or {}), "iteration": iteration, "log_bytes": self._log.tell()}
        if update:
            record["update"] = update
        record["streams"] = STREAMS
        write_tensors(self.checkpoint, KIND, tensors, record)

    @contextlib.contextmanager
    def logging(self, first_iteration: int) -> Iterator[None]:
        """While it lasts, `log` writes; lines of `first_iteration` and later are new."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.path / "tensorboard"
        board = SummaryWriter(folder, purge_step=first_iteration if folder.exists() else None)
        with self.log_path.open("ab") as self._log, contextlib.closing(board) as self._board:
            yield

    def log(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Add a line to both logs."""
        line = json.dumps({"iteration": iteration, **numbers})
        with writing(self.log_path):
            self._log.write(line.encode() + b"\n")
            self._log.flush()
        for name, number in numbers.items():
            self._board.add_scalar(name, number, iteration)


def check_folder(path: Path, *, resume: bool) -> None:
    """Raise where a folder holds a run that may not be gone on with, or something else."""
    if path.is_file():
        raise NotADirectoryError(f"out: {path} is a file; name a folder")
    if (path / "config.yaml").exists():
        if not resume:
            raise FileExistsError(
                f"out: {path} holds a run already; add --resume to go on with it, or name "
                "another folder"
            )
    elif path.exists() and any(not file.name.endswith(_OWN) for file in path.iterdir()):
        raise FileExistsError(f"out: {path} holds something else than a run; name another folder")


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
