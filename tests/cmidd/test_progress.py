from __future__ import annotations

import io
import sys
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from cmidd.progress import Readout, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Screen(io.StringIO):
    """Stderr of a terminal, or of a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(screen: Screen, monkeypatch: pytest.MonkeyPatch, clock: list[float], **more: Any) -> str:
    """What 100 updates of a second each print."""
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(total=100, desc="work", unit="step", file=screen, **more) as bar:
        for loss in range(100):
            clock[0] += 1
            bar.update()
            bar.set_postfix(loss=loss)
    return screen.getvalue()


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    text = shown(Screen(terminal=False), monkeypatch, clock)
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 4  # after 31, 62 and 93 seconds, and the whole
    assert all(line.startswith("work: ") for line in lines)
    assert "100/100" in lines[-1]
    assert "loss=99" in lines[-1]


def test_what_need_not_stay_leaves_no_last_line(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    text = shown(Screen(terminal=False), monkeypatch, clock, leave=False)
    assert "100/100" not in text


def test_messages_between_lines_stand_alone(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(total=2, file=screen):
        tqdm.write("a message", file=screen)
    assert screen.getvalue().splitlines()[0] == "a message"


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    text = shown(Screen(terminal=True), monkeypatch, clock, mininterval=0)
    assert text.count("\r") > 50


def test_it_goes_over_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=False)
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress([1, 2, 3], desc="over", file=screen)) == [1, 2, 3]
    assert screen.getvalue().count("\n") == 1


def test_a_number_is_read_from_a_gpu_once_a_second_and_from_a_cpu_always(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = [1.0, 2.0, 3.0]
    monkeypatch.setattr(Tensor, "item", lambda _: reads.pop(0))
    read, there = Readout(), torch.empty((), device="meta")
    found = []
    for clock[0] in (0.0, 0.5, 0.99, 1.0, 1.5, 2.5):
        found.append(read(there))
    assert found == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    monkeypatch.undo()
    read = Readout()
    assert [read(torch.tensor(float(k))) for k in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]
