"""The view of images that hold several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmidd.view import View, cells
from tests.support.peer_files import numbers, pixels

GREY = (0.5, 0.25, 0.75)


def as_idc(image: Tensor, factor: int) -> list[Tensor]:
    """The crops of one image (ch, H, W), row by row, padded and enlarged one at a time."""
    size = image.shape[1]
    step = -(-size // factor)
    padded = torch.tensor(GREY).view(3, 1, 1).repeat(1, step * factor, step * factor)
    padded[:, :size, :size] = image
    found = []
    for i in range(factor):
        for j in range(factor):
            crop = padded[:, i * step : (i + 1) * step, j * step : (j + 1) * step]
            found.append(F.interpolate(crop[None], size=(size, size), mode="bilinear")[0])
    return found


@given(st.integers(1, 4), st.integers(4, 9), st.integers(1, 3))
def test_cells_are_crops_row_by_row_of_one_image_after_another(
    factor: int, size: int, count: int
) -> None:
    images, labels = numbers(count, 3, size, size), torch.arange(count)
    seen, of = cells(images, labels, factor=factor, grey=GREY)
    expected = [crop for image in images for crop in as_idc(image, factor)]
    torch.testing.assert_close(seen, torch.stack(expected))
    assert of.tolist() == [row for row in range(count) for _ in range(factor**2)]


def test_quadrants_of_idm_come_column_by_column() -> None:
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, :2, :2], images[0, 0, 2:, :2] = 1, 2
    images[0, 0, :2, 2:], images[0, 0, 2:, 2:] = 3, 4
    seen, _ = cells(images, torch.zeros(1), factor=2, order="columns")
    assert torch.equal(seen, torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1, 1).expand(4, 1, 4, 4))
    seen, _ = cells(images, torch.zeros(1), factor=2)
    assert seen[:, 0, 0, 0].tolist() == [1, 3, 2, 4]


def test_rows_of_soft_labels_go_with_their_images() -> None:
    soft = pixels(2, 5)
    _, of = cells(numbers(2, 1, 4, 4), soft, factor=2)
    assert torch.equal(of, soft.repeat_interleave(4, dim=0))


@pytest.mark.parametrize("size", [4, 5])
def test_cells_are_differentiable(size: int) -> None:
    images = numbers(2, 3, size, size).double().requires_grad_()
    labels = torch.arange(2)
    assert torch.autograd.gradcheck(
        lambda x: cells(x, labels, factor=2, grey=GREY)[0], images, fast_mode=True
    )


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_comes_before_or_after_normalising(factor: int) -> None:
    images, labels = pixels(2, 3, 8, 8), torch.arange(2)
    mean, std = torch.tensor(GREY).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    grey = ((0.5 - mean) / std).flatten().tolist()
    found, _ = cells((images - mean) / std, labels, factor=factor, grey=grey)
    expected, _ = cells(images, labels, factor=factor, grey=(0.5, 0.5, 0.5))
    torch.testing.assert_close(found, (expected - mean) / std)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0}, "factor: expected a whole number from 1 to 4, got 0"),
        ({"factor": 10**9}, "factor: expected a whole number from 1 to 4, got 1000000000"),
        ({"factor": 2.0}, "factor: expected a whole number from 1 to 4, got 2.0"),
        ({"factor": 2, "order": "x"}, "order: expected rows or columns, got 'x'"),
        ({"factor": 3}, "grey: expected 1 numbers, as 3 does not divide 4 x 4, got None"),
        ({"factor": 3, "grey": [1, 2]}, r"grey: expected 1 numbers, .* got \[1, 2\]"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        View("cells", settings)(torch.zeros(1, 1, 4, 4), torch.zeros(1))
