"""What tests of datasets share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmidd.datasets import idx


@pytest.fixture(autouse=True)
def system_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty folder in the place of that of the system, which may hold the real FashionMNIST."""
    folder = tmp_path_factory.mktemp("system")
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"fashionmnist": folder})
    return folder
