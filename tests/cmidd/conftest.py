"""Fixtures that tests of the driver share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmidd.options.cmi import CMIOptions
from tests.support.labels import labelled
from tests.support.replaying import Replayed, replayed
from tests.support.threads import one_thread
from tests.support.tiny import tiny_bank, tiny_dataset

__all__ = ["one_thread"]  # a fixture of all tests below


@pytest.fixture(scope="module")
def bank_file(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bank of the tiny dataset."""
    path = tmp_path_factory.mktemp("shared") / "bank"
    tiny_bank(path, tiny_dataset())
    return path


@pytest.fixture(scope="module")
def labels_file(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Soft labels of a tiny set."""
    path = tmp_path_factory.mktemp("labels") / "labels"
    labelled(path)
    return path


@pytest.fixture
def cmi(bank_file: Path) -> CMIOptions:
    """CMI by that bank."""
    return CMIOptions(bank=bank_file, cmi_weight=5.0)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """Steps on a CPU are captured, and done again by what counts them."""
    return replayed(monkeypatch)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Ctrl-C is heeded, which background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
