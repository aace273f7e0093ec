"""Fixtures and hypothesis profiles shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.tables import BACKENDS

_ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _ANY, max_examples=100, derandomize=True)
settings.register_profile("thorough", _ANY, max_examples=2000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
settings.load_profile(PROFILE)
FINITE_INPUTS = 100_000 if PROFILE == "thorough" else 400

# How many finite inputs test_finite.py has put through each backend, for the summary.
INPUTS_CHECKED: pytest.StashKey[dict[str, int]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[INPUTS_CHECKED] = {}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for backend, count in config.stash[INPUTS_CHECKED].items():
        terminalreporter.write_line(f"{backend}: no NaN or Inf in {count} finite inputs")


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend that can run here, in turn."""
    name: str = request.param
    return name


@pytest.fixture
def nan_filled_empty() -> Iterator[None]:
    """torch.empty and its kin give NaN, so that an element nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """The number of torch threads as it was, after a test that sets it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
