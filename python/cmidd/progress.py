"""Progress of long work: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from typing import Any

from torch import Tensor
from tqdm import tqdm

from cmidd import ranks

_PAUSE = 30.0  # seconds between two lines of a log


class _Lines(tqdm):  # type: ignore[misc]
    """A bar that is written as lines of its own, which the log of a batch job can hold."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self._shown, self._ended = time.monotonic(), False
        super().__init__(*arguments, ncols=0, **settings)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002
        """Write a line if the last one is a while ago."""
        if time.monotonic() - self._shown > _PAUSE:
            self._write()
        return True

    def _write(self) -> None:
        self._shown = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # whoever read it is gone, and work goes on
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Leave what is written."""

    def close(self) -> None:
        """End with a line of the whole, where a bar would stay."""
        if self._ended or self.disable:
            return
        self._ended = True
        type(self)._instances.discard(self)
        if self.leave:
            self._write()


class Readout:
    """A number that is shown as it changes: read from a GPU, which is waited for, once a second."""

    def __init__(self) -> None:
        self._number, self._read = math.nan, -math.inf

    def __call__(self, number: Tensor) -> float:
        """The number, or the last one that was read."""
        now = time.monotonic()
        if number.device.type == "cpu" or now - self._read >= 1:
            self._number, self._read = number.item(), now
        return self._number


def progress(iterable: Any = None, **settings: Any) -> Any:
    """What `tqdm` takes and does, on stderr."""
    if not ranks.is_first():
        settings["disable"] = True
    is_seen = sys.stderr.isatty() or "ipykernel" in sys.modules  # a notebook redraws too
    kind = tqdm if is_seen else _Lines
    return kind(iterable, **settings)
