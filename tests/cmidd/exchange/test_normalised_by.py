"""Images that a tool has normalised by its own numbers are normalised by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.datasets import load_dataset
from cmidd.datasets.known import KNOWN
from cmidd.options.exchange import NORMALISATIONS
from tests.support.dataset_files import random_sets, write_npz
from tests.support.peer_files import (
    CLASSES,
    LABELS,
    converted,
    numbers,
    pixels,
    write_idc,
    write_pair,
    write_res,
)

N, COLOUR = len(LABELS), (3, 32, 32)


def of_channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def test_whose_mean_and_deviation_a_tool_took_is_asked_for_where_none_are_published(
    elsewhere: Path,
) -> None:
    write_npz(elsewhere / "real.npz", random_sets(CLASSES, 3, 8, 8))
    real, shown = load_dataset("arrays:real.npz"), pixels(N, 3, 8, 8)
    known = KNOWN["imagenet"]
    mean, std = map(of_channels, (known.mean, known.std))
    for images, name in (
        ((shown - mean) / std, "imagenet"),
        (2 * shown - 1, "half"),
        ((shown - of_channels(real.mean)) / of_channels(real.std), "measured"),
    ):
        res = write_res(Path("res.pt"), images)
        pair = write_pair(Path(), images, LABELS)
        for path, told in ((res, {"factor": 1}), (pair, {"space": "normalised"})):
            with pytest.raises(
                ValueError, match=r"^normalised_by: no mean .* of arrays:real\.npz are published"
            ):
                converted(path, real.name, **told)
            found = converted(path, real.name, normalised_by=name, **told)
            torch.testing.assert_close(found.pixels(), shown)
            assert found.record["converted"]["normalised_by"] == name
            assert found.record["mean"] == list(real.mean)
    assert torch.equal(found.images, images)  # measured: as ours are, bit by bit


def test_a_tool_may_have_taken_other_numbers_than_are_published(tmp_path: Path) -> None:
    shown = pixels(N, *COLOUR)
    told: dict[str, Any] = {"space": "normalised", "normalised_by": "half"}
    found = converted(write_pair(tmp_path, 2 * shown - 1, LABELS), **told)
    torch.testing.assert_close(found.pixels(), shown)


def test_what_images_are_normalised_by_is_of_their_channels_and_of_normalised_ones(
    tmp_path: Path,
) -> None:
    path = write_pair(tmp_path, numbers(N, *COLOUR), LABELS)
    with pytest.raises(ValueError, match=r"^normalised_by: .* 3 channels, as cifar10 has, got mni"):
        converted(path, space="normalised", normalised_by="mnist")
    with pytest.raises(ValueError, match=r"^normalised_by: expected it with .*, got pixels ones"):
        converted(write_idc(tmp_path / "data.pt", pixels(N, *COLOUR)), factor=1,
                  normalised_by="imagenet")  # fmt: skip


def test_names_of_what_images_are_normalised_by_are_those_with_published_numbers() -> None:
    assert ("measured", "half", *KNOWN) == NORMALISATIONS
