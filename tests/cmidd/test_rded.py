"""RDED's choice is that of a plain one, part by part, and a function of seed and class alone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmidd import rded
from cmidd.datasets import Dataset, ImageSet, load_dataset
from cmidd.datasets.pictures import decode
from cmidd.networks import Network, build_network, freeze, initialize
from cmidd.rded import draw_parts, rded_images
from cmidd.seeds import generator
from tests.support.dataset_files import Sets, Split, write_tinyimagenet
from tests.support.tiny import CPU

SIDE, PER_CLASS, CLASSES = 12, 30, 3


def pixels_of(count: int, side: int, channels: int = 3) -> Tensor:
    """Images of 4 x 4 squares of one colour each."""
    coarse = torch.rand(count, channels, 4, 4, generator=generator("rded", channels))
    large = coarse.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    return (large * 255).to(torch.uint8)


@cache
def dataset_of(channels: int = 3) -> Dataset:
    """Random smooth images, so that parts differ in what a network makes of them."""
    pixels = pixels_of(PER_CLASS * CLASSES, SIDE, channels)
    labels = torch.arange(CLASSES).repeat(PER_CLASS)
    part = ImageSet.from_arrays(pixels, labels, CLASSES)
    return Dataset("smooth", part, part, ("a", "b", "c"), (0.5,) * channels, (0.25,) * channels,
                   mirror=True)  # fmt: skip


def teacher_of(channels: int = 3) -> Network:
    network = build_network("convnet:depth=2,width=8,norm=batch", channels, SIDE, CLASSES)
    initialize(network, generator("teacher", channels))
    return freeze(network)


def made(label: int = 1, count: int = 3, factor: int = 2, seed: int = 0, **changes: int) -> Tensor:
    return rded_images(dataset_of(), teacher_of(), label, count, factor, seed, CPU, **changes)


# --- a plain one


def shrunk(part: Tensor, side: int) -> Tensor:
    """A square part made `side` pixels high and wide: triangles of weights around each pixel."""
    length = part.shape[-1]
    scale = length / side
    reach = max(scale, 1)
    matrix = torch.zeros(side, length, dtype=torch.float64)
    for i in range(side):
        centre = (i + 0.5) * scale
        for j in range(length):
            matrix[i, j] = max(0, 1 - abs(j + 0.5 - centre) / reach)
        matrix[i] /= matrix[i].sum()
    return matrix @ part @ matrix.T


def by_hand(
    teacher: nn.Module, label: int, count: int, factor: int, candidates: int, crops: int
) -> Tensor:
    side = SIDE // factor
    before = (SIDE - side) // 2
    rows, places = draw_parts(dataset_of(), label, 0, candidates, crops)
    best = []
    for number, row in enumerate(rows.tolist()):
        image = dataset_of().to_input(dataset_of().train.images[row : row + 1])[0].double()
        found = []
        for k, (top, high, left, wide) in enumerate(places[number].tolist()):
            cell = shrunk(image[:, top : top + high, left : left + wide], side)
            seen = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
            seen[0, :, before : before + side, before : before + side] = cell
            logits = teacher(seen)[0].tolist()
            total = math.log(sum(math.exp(each) for each in logits))
            found.append((total - logits[label], k, cell))
        score, _, cell = min(found, key=lambda each: each[:2])
        best.append((score, number, cell))
    cells = [cell for *_, cell in sorted(best, key=lambda each: each[:2])]
    images = torch.zeros(count, 3, SIDE, SIDE, dtype=torch.float64)
    for i in range(count):
        for row in range(factor):
            for column in range(factor):
                down, right = row * side, column * side
                cell = cells[(row * factor + column) * count + i]
                images[i, :, down : down + side, right : right + side] = cell
    return images


@pytest.mark.parametrize(
    ("label", "count", "factor", "candidates", "crops"),
    [(0, 3, 2, 300, 5), (1, 1, 2, 5, 3), (2, 6, 1, 20, 2), (1, 2, 3, 18, 1), (0, 1, 4, 30, 2)],
)
def test_images_are_those_of_a_plain_choice(
    label: int, count: int, factor: int, candidates: int, crops: int
) -> None:
    got = made(label, count, factor, candidates=candidates, crops=crops)
    assert got.dtype == torch.float32
    expected = by_hand(teacher_of().double(), label, count, factor, candidates, crops)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


class Indifferent(nn.Module):
    """All images are the same to it."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), CLASSES, dtype=images.dtype)


def test_of_equals_the_first_are_taken() -> None:
    got = rded_images(dataset_of(), Indifferent(), 1, 3, 2, 0, CPU)
    expected = by_hand(Indifferent(), 1, 3, 2, 300, 5)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)


def test_the_teacher_is_surer_of_what_was_chosen_than_of_the_rest() -> None:
    def loss(images: Tensor) -> float:
        return float(
            nn.functional.cross_entropy(teacher_of()(images), torch.full((len(images),), 1))
        )

    few, all_of_them = made(count=3, factor=1, crops=1), made(count=30, factor=1, crops=1)
    assert loss(few) < loss(all_of_them) - 0.01
    assert loss(made(count=3, factor=1, crops=20)) < loss(few)


# --- what is drawn


def test_parts_are_square_and_have_shares_of_the_area_from_a_twelfth_on() -> None:
    black = torch.zeros(len(dataset_of().train), 3, 100, 100, dtype=torch.uint8)
    part = replace(dataset_of().train, source=black)
    large = replace(dataset_of(), train=part, test=part)
    rows, places = draw_parts(large, 1, 0, 300, 200)
    first, end = large.train.offsets[1:3].tolist()
    assert sorted(rows.tolist()) == list(range(first, end))
    top, high, left, wide = places.unbind(2)
    assert torch.equal(high, wide)
    assert bool((top >= 0).all() and (top + high <= 100).all())
    assert bool((left >= 0).all() and (left + wide <= 100).all())
    shares = (high / 100).square()
    assert 0.077 < shares.min() < 0.085
    assert 0.99 < shares.max() <= 1
    assert abs(float(shares.mean()) - 0.54) < 0.02
    free = (100 - high).double()
    inside = (top.double() / free)[free > 50]
    assert abs(float(inside.mean()) - 0.5) < 0.02
    assert inside.max() == 1


def test_images_are_a_function_of_seed_and_class_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    images = made(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    made(label=0, seed=3)
    torch.manual_seed(5)
    assert torch.equal(made(seed=3), images)
    assert not torch.equal(made(seed=4), images)
    assert not torch.equal(draw_parts(dataset_of(), 1, 3, 30, 5).places,
                           draw_parts(dataset_of(), 2, 3, 30, 5).places)  # fmt: skip
    monkeypatch.setattr(rded, "images_per_chunk", lambda *_: 7)
    torch.testing.assert_close(made(seed=3), images, rtol=0, atol=1e-5)
    monkeypatch.setattr(rded, "_IMAGES_PER_READ", 4)
    torch.testing.assert_close(made(seed=3), images, rtol=0, atol=1e-5)


def test_fewer_candidates_are_the_first_of_more() -> None:
    few, many = (draw_parts(dataset_of(), 1, 0, candidates, 5) for candidates in (10, 30))
    assert torch.equal(few.rows, many.rows[:10])
    assert torch.equal(few.places, many.places[:10])


def test_pictures_are_decoded_on_demand_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = [
        Split(pixels_of(2 * count, 64).numpy(), torch.arange(2).repeat_interleave(count).numpy())
        for count in (9, 2)
    ]
    write_tinyimagenet(tmp_path, Sets(*splits))
    teacher = build_network("convnet:depth=1,width=4", 3, 64, 2)
    initialize(teacher, generator("teacher"))
    whole, encoded = (
        load_dataset("tinyimagenet", tmp_path, on_demand=on_demand) for on_demand in (False, True)
    )
    decoded: list[Tensor] = []

    def counted(pictures: Any, rows: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        decoded.append(rows)
        return decode(pictures, rows, *arguments, **settings)

    monkeypatch.setattr("cmidd.datasets.encoded.decode", counted)
    monkeypatch.setattr(rded, "_IMAGES_PER_READ", 4)
    images = rded_images(whole, freeze(teacher), 1, 2, 2, 0, CPU)
    assert not decoded
    for _ in range(2):  # there is room for all of them, and none is kept
        assert torch.equal(rded_images(encoded, freeze(teacher), 1, 2, 2, 0, CPU), images)
        assert [len(rows) for rows in decoded] == [4, 4, 1]
        assert torch.cat(decoded).sort().values.tolist() == list(range(9, 18))
        decoded.clear()


# --- what does not fit


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"label": 3}, "label: expected a class from 0 to 2, got 3"),
        ({"count": 0}, "count: expected 1 or more, got 0"),
        ({"factor": 5}, "factor: expected one that divides images of 12 x 12, got 5"),
        ({"crops": 0}, "crops: expected 1 or more, got 0"),
        ({"count": 8}, "count: expected at most 7 images of 2 x 2 cells of class 1, which has 30 "
                       "training images, got 8"),
        ({"candidates": 10}, "candidates: expected at least 12, one for each cell of 3 images of 2 "
                             "x 2, got 10"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_that_names_it(changes: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=rf"^{told}"):
        made(**changes)


def test_a_teacher_that_has_diverged_is_named() -> None:
    broken = teacher_of()
    broken.head.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"^teacher: expected finite losses .* class 1, got NaN"):
        rded_images(dataset_of(), broken, 1, 3, 2, 0, CPU)
