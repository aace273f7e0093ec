"""Experts that tests of methods share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.plain.inputs import random_dataset
from cmidd.options.pretrained import ExpertOptions
from cmidd.pretrained.experts import train_experts
from tests.support.mtt_cases import EPOCHS, NETWORK, REAL
from tests.support.tiny import CPU, quiet

Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Files of two experts of a network, made once."""
    folder = tmp_path_factory.mktemp("experts")

    def file(network: str) -> Path:
        path = folder / network
        if not path.exists():
            options = ExpertOptions(network, experts=2, epochs=EPOCHS, lr=0.05, batch_size=16)
            train_experts(path, random_dataset(REAL, 16), options, CPU, say=quiet)
        return path

    return file


@pytest.fixture(scope="module")
def experts(trained: Trained) -> Path:
    return trained(NETWORK)
