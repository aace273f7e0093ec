"""The model of several GPUs."""

from __future__ import annotations

import itertools

import pytest

from bench import scaling
from bench.harness.records import Record


def test_convolutions_are_counted() -> None:
    network = "convnet:depth=2,width=8"
    forward, image, weights, second = (
        scaling.operations(network, 16, 10, what)
        for what in ("forward", "image", "weights", "second")
    )
    first, later = 2 * 16 * 16 * 8 * 27, 2 * 8 * 8 * 8 * 72  # of the two convolutions
    last = 2 * 8 * 4 * 4 * 10
    assert forward == first + later + last
    assert image == 2 * forward
    assert weights == 3 * forward - first  # nothing is asked of the pixels
    assert second > 2 * weights


def test_more_gpus_take_no_longer_but_for_sums_and_the_host() -> None:
    rows = scaling.rows()
    assert len(rows) == 30
    for row in rows:
        device = row["of_shared"] + row["of_alone"] + row["of_sums"]
        assert row["seconds"] == pytest.approx(max(device, row["of_host"]), rel=1e-3)
    pairs = [(a, b) for a, b in itertools.pairwise(rows) if b["gpus"] > a["gpus"]]
    assert len(pairs) == 20
    assert all(b["of_shared"] < a["of_shared"] for a, b in pairs)
    record = Record("scaling", {}, {"assumed": scaling.ASSUMED}, rows)
    assert "sums over ranks" in scaling.report(record)
