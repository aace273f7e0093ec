"""How signals are handled while work that can be saved is under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from cmidd.interruption import Interrupted, deferred, sigterm_interrupts


def test_signals_in_a_thread_are_left_to_the_main_one() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[Any] = []

    def work() -> None:
        with deferred() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_sigterm_interrupts_where_it_is_not_deferred() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts(), pytest.raises(Interrupted) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred() as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop.asked
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


TWICE = """
import os, signal, sys, time
from cmidd.interruption import deferred
with deferred() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # at once, as `timeout` does
    assert stop.asked
    time.sleep(1.1)
    print("still at work", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("not reached", flush=True)
"""


def test_a_second_signal_ends_at_once_but_not_its_echo() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGTERM
    assert ended.stdout == "still at work\n"
    assert "SIGTERM: finishing what is under way" in ended.stderr


def test_a_second_ctrl_c_raises_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmidd.interruption._ONE_REQUEST", 0.0)
    with deferred() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop.number = None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_terminal_that_is_gone_asks_for_an_end_too() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored
    try:
        with pytest.raises(Interrupted) as caught, deferred():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert caught.value.number == signal.SIGHUP


UNREAD = """
import os, signal, sys
from cmidd.interruption import deferred
from cmidd.progress import progress
sys.stdin.read()  # until nobody reads stderr
try:
    with deferred() as stop, progress(total=1) as bar:
        os.kill(os.getpid(), signal.SIGINT)
        bar.update()
        print("saved", flush=True)
        raise stop.interruption("")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_work_is_saved_though_nobody_reads_what_is_said() -> None:
    """Ctrl-C ends both sides of `cmidd distill dm 2>&1 | tee log`."""
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stderr.close()
        child.stdin.close()
        assert child.stdout.read() == "saved\ninterrupted\n"
