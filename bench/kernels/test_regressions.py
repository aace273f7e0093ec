"""Times for pytest-benchmark to compare from run to run: `pytest bench --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.harness.providers import PROVIDERS, contend
from bench.harness.race import random_features

SHAPES = ((10, 10, 512), (43, 31, 640), (200, 50, 1024))


@pytest.mark.benchmark(max_time=0.5, min_rounds=3)
@pytest.mark.parametrize("provider", ["cmikernels", "published"])
@pytest.mark.parametrize("mode", ["value", "value+gradient"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_time(benchmark: Any, shape: tuple[int, int, int], mode: str, provider: str) -> None:
    """One call of a provider, against its own past and the published expression."""
    inputs = random_features(shape, torch.float32, "cpu")
    contender = contend(PROVIDERS[provider].make(), mode, inputs)
    benchmark.group = f"{mode} {'x'.join(map(str, shape))}"
    benchmark(lambda: contender.run(contender.prepare()))
