"""Fixtures that tests of recovery share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recovered import tiny_teachers


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two networks with batch norm."""
    return tiny_teachers(tmp_path_factory.mktemp("teachers") / "teachers")
