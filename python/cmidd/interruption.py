"""Ctrl-C, SIGTERM (Slurm, `timeout`) and SIGHUP (a terminal that is gone): save, then end.

    with deferred() as stop:
        for update in ...:
            ...
            if stop.asked:
                save()
                raise stop.interruption("interrupted after 17 updates")

What is under way is finished first. A second signal does at once what it does elsewhere.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Handler = Callable[[int, FrameType | None], Any] | int | None
_ONE_REQUEST = 1.0  # seconds in which two signals are one: `timeout` sends each of them twice


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; the message says what is kept of it."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Stop:
    """Whether a signal has asked for an end."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.usual: dict[signal.Signals, _Handler] = {}
        """How signals are handled elsewhere."""
        self._since = 0.0

    @property
    def asked(self) -> bool:
        """Whether to save what there is and end."""
        return self.number is not None

    def interruption(self, message: str) -> Interrupted:
        """What to raise once all is saved."""
        return Interrupted(message, self.number or signal.SIGINT)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._since = number, now
            name = signal.Signals(number).name
            # Ctrl-C ends a `tee` that reads this too, and stderr may be in the middle of a write.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                print(
                    f"\n{name}: finishing what is under way, to save it; once more ends at once",
                    file=sys.stderr,
                    flush=True,
                )
        elif now - self._since > _ONE_REQUEST:
            signal.signal(number, self.usual[signal.Signals(number)])
            signal.raise_signal(number)


@contextlib.contextmanager
def deferred() -> Iterator[Stop]:
    """While it lasts, the first signal is noted; threads but the main one get none.

    Signals that are ignored, as Ctrl-C is by what a script runs in the background, stay ignored.

    Raises:
        Interrupted: a signal came, and what was under way was finished.
    """
    stop = Stop()
    with _handled_by(stop._note, _SIGNALS) as stop.usual:
        yield stop
    if stop.asked:
        raise stop.interruption("interrupted; what was under way is finished and kept")


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While it lasts, SIGTERM raises where Ctrl-C does, unless it is deferred."""

    def end(number: int, _: FrameType | None) -> None:
        raise Interrupted("", number)

    with _handled_by(end, (signal.SIGTERM,)):
        yield


@contextlib.contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]
) -> Iterator[dict[signal.Signals, _Handler]]:
    """Signals that are not ignored go to a handler, where this is the thread that gets them."""
    usual: dict[signal.Signals, _Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for each in numbers:
            if signal.getsignal(each) not in (signal.SIG_IGN, None):  # None: not Python's to set
                usual[each] = signal.signal(each, handler)
    try:
        yield usual
    finally:
        for each, former in usual.items():
            signal.signal(each, former)
