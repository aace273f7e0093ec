"""Fixtures of the tests of backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def emulate() -> Iterator[Callable[..., None]]:
    """Choose the emulated chip by name and the schedule by its seed, for one test."""
    from tests.support.emulated_gpu import CHIPS, emulated

    yield lambda chip="tiny", seed=0: emulated.emulate(seed=seed, chip=CHIPS[chip]._asdict())
    emulated.emulate()
