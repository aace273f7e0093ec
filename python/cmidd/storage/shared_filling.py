"""A growing file that processes fill together, each item made by the one that comes to it first.

A process holds the lock of an item while it makes it, so that another goes on to the next. The
system lets go of it however the process ends, and the item is then there for others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path

from torch import Tensor

from cmidd.storage.growing_file import GrowingFile
from cmidd.storage.lock import LOCK_NAME, BusyError, locked

_PAUSE = 0.2  # seconds between two looks at what others make
_MOMENTS = 300  # such pauses, in which what takes moments is done


def fill_together(
    growing: GrowingFile,
    make: Callable[[int], Mapping[str, Tensor]],
    order: Sequence[int],
    *,
    wait: bool = False,
    waiting: Callable[[int, str], None] | None = None,
) -> list[int]:
    """Make the items that are missing and that no other process makes; those that others still do.

    Args:
        growing: the file.
        make: makes the tensors of an item.
        order: in which this process comes to the items.
        wait: until others have made theirs, and make what they leave.
        waiting: told once for which item it waits, and who makes that.
    """
    while True:
        busy, holder = [], ""
        for item in order:
            if growing.is_done(item):
                continue
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(_claim(growing, item)))
                except BusyError as error:
                    busy.append(item)
                    holder = holder or error.holder
                    continue
                if not growing.is_done(item):  # nobody has made it since
                    growing.put(item, make(item))
        if not (busy and wait):
            return busy
        if waiting is not None:
            waiting(busy[0], holder)
            waiting = None
        order = busy
        time.sleep(_PAUSE)


def complete(growing: GrowingFile) -> None:
    """Give the file its name once all is made; locks that killed processes left are taken away."""
    growing.complete()
    path = growing.complete_path
    for lock in path.parent.glob(f".{escape(path.name)}.*{LOCK_NAME}"):
        lock.unlink(missing_ok=True)


def _claim(growing: GrowingFile, item: int) -> Path:
    path = growing.complete_path
    return path.with_name(f"{path.name}.{item}")


@contextlib.contextmanager
def locked_soon(path: Path, *, folder: bool = False) -> Iterator[None]:
    """`locked`, once others that hold the lock for a moment have let go of it."""
    for left in reversed(range(_MOMENTS)):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, folder=folder))
            except BusyError:
                if not left:
                    raise
            else:
                yield
                return
        time.sleep(_PAUSE)
