"""No NaN and no Inf out of finite features of any magnitude, whatever else the call says.

One hypothesis example is one input. `HYPOTHESIS_PROFILE=thorough` makes 100,000 for each backend
(1000 for an interpreted one), on a CPU in about five minutes; the summary at the end of the run
says how many there were. A test is all inputs of a backend, so add `-o faulthandler_timeout=3600`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.conftest import FINITE_INPUTS, INPUTS_CHECKED, examples
from tests.support.compare import value_and_gradient
from tests.support.tables import DTYPES, REDUCTIONS

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
palettes = st.lists(finite, min_size=1, max_size=6)


def mixed_features(
    palette: list[float], spread: float, seed: int, rows: int, channels: int, dtype: torch.dtype
) -> torch.Tensor:
    """Entries of a palette, of noise of some spread, and of both, mixed at random; all finite."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(np.array(palette), size=(rows, channels))
    noise = rng.standard_normal((rows, channels)) * spread
    features = np.choose(rng.integers(0, 3, (rows, channels)), [chosen, noise, chosen + noise])
    if seed % 4 == 0:  # whole columns alike, so that a channel underflows in a whole class
        features[:, :: 1 + seed % 3] = chosen[:1, :: 1 + seed % 3]
    largest = torch.finfo(dtype).max
    return torch.from_numpy(features).clamp(-largest, largest).to(dtype)


@pytest.mark.usefixtures("any_centroids")
def test_finite_features_give_finite_numbers(backend: str, pytestconfig: pytest.Config) -> None:
    @examples(backend, FINITE_INPUTS)
    @given(
        palette=palettes,
        spread=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 30.0, 1e3, 1e10, 1e38]),
        seed=st.integers(0, 2**32 - 1),
        sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4),
        channels=st.integers(1, 40),
        dtype=st.sampled_from(DTYPES),
        temperature=st.sampled_from([1.0, 0.05, 0.3, 4.0, 1e6]),
        weight=st.sampled_from([1.0, -2.0, 0.0, 10.0]),
        reduction=st.sampled_from(REDUCTIONS),
        centroids=st.sampled_from([None, "zeros", "own palette"]),
    )
    @example(
        palette=[3.4028234663852886e38, -3.4028234663852886e38, 0.0],
        spread=1.0,
        seed=1,
        sizes=[3, 4],
        channels=33,
        dtype=torch.float32,
        temperature=0.05,
        weight=1.0,
        reduction="none",
        centroids=None,
    )
    def are_finite(
        palette: list[float],
        spread: float,
        seed: int,
        sizes: list[int],
        channels: int,
        dtype: torch.dtype,
        temperature: float,
        weight: float,
        reduction: str,
        centroids: str | None,
    ) -> None:
        features = mixed_features(palette, spread, seed, sum(sizes), channels, dtype)
        assert features.isfinite().all()
        labels = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
        given_centroids = None
        if centroids == "zeros":
            given_centroids = torch.zeros(len(sizes), channels)
        elif centroids == "own palette":
            rng = np.random.default_rng(seed + 1)
            chosen = np.clip(np.abs(rng.choice(np.array(palette), (len(sizes), channels))), 0, 1)
            given_centroids = torch.from_numpy(chosen)
        value, gradient = value_and_gradient(
            backend,
            features,
            labels,
            num_classes=len(sizes),
            centroids=given_centroids,
            temperature=temperature,
            weight=weight,
            reduction=reduction,
        )
        counts = pytestconfig.stash[INPUTS_CHECKED]
        counts[backend] = counts.get(backend, 0) + 1
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if given_centroids is None and weight >= 0:
            assert (value >= -1e-12).all()
            if reduction == "mean" and sizes:
                assert float(value) <= weight * math.log(max(1, *sizes)) * (1 + 1e-6) + 1e-12

    are_finite()
