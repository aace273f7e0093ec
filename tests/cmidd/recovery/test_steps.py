"""What a step draws and shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.plain.recover import crop_scale, shuffled
from cmidd.augment import Strategy
from cmidd.options.recover import CURRICULA, RecoverOptions
from cmidd.recovery.steps import augmented, draw_step, least_area, lr_in, reordered
from tests.support.recovered import recover_options

TEACHER = Path("teacher")
OPTIONS = replace(recover_options(TEACHER), curriculum="none", patches=1)
ZOOM = Strategy.parse("all:zoom_flip")


@pytest.mark.parametrize("curriculum", CURRICULA)
@pytest.mark.parametrize("share", [0.25, 0.9])
def test_the_least_area_falls_as_cda_has_it(curriculum: str, share: float) -> None:
    options = replace(
        OPTIONS, curriculum=curriculum, iterations=40, zoom=0.08, curriculum_share=share
    )
    for step in range(40):
        expected = crop_scale(curriculum, step, 40, share, (1.0, 0.08))
        assert least_area(options, step) == pytest.approx(expected, abs=1e-12)
    assert least_area(options, 0) == (0.08 if curriculum == "none" else 1.0)
    assert least_area(options, 39) == 0.08


def test_the_cosine_is_half_way_in_the_middle() -> None:
    options = replace(OPTIONS, curriculum="cosine", iterations=100, zoom=0.08)
    assert least_area(options, 50) == pytest.approx(0.54)


def test_the_learning_rate_falls_along_a_cosine() -> None:
    options = replace(OPTIONS, lr=0.4, iterations=4)
    found = [lr_in(options, step) for step in range(4)]
    assert found == pytest.approx([0.4, 0.2 + 0.1 * 2**0.5, 0.2, 0.2 - 0.1 * 2**0.5])


def test_draws_depend_on_seed_batch_and_step_alone() -> None:
    def numbers(options: RecoverOptions, item: int, step: int) -> list[float]:
        drawn = draw_step(options, ZOOM, 1000, item, step)
        return [drawn.teacher, *drawn.roll, *drawn.augmentation.numbers.flatten().tolist()]

    first = numbers(OPTIONS, 3, 7)
    assert numbers(OPTIONS, 3, 7) == first
    others = [(OPTIONS, 2, 7), (OPTIONS, 3, 6), (replace(OPTIONS, seed=1), 3, 7)]
    assert all(numbers(*other) != first for other in others)
    rolls = [draw_step(OPTIONS, ZOOM, 1, 0, step).roll for step in range(60)]
    assert {down for down, _ in rolls} == {right for _, right in rolls} == {0, 1, 2}


def test_patches_change_places_as_in_a_loop_over_them() -> None:
    images = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    order = torch.tensor([4, 2, 8, 0, 1, 7, 6, 5, 3])
    assert torch.equal(reordered(images, 3, order), shuffled(images, 3, order.tolist()))


def test_all_images_of_a_batch_are_changed_alike() -> None:
    options = replace(OPTIONS, patches=2)
    images = torch.rand(1, 3, 8, 8).repeat(4, 1, 1, 1)
    for step in range(5):
        drawn = draw_step(options, ZOOM, 1, 0, step)
        seen = augmented(images, options, ZOOM, drawn, step)
        assert torch.equal(seen, seen[:1].expand_as(seen))
        assert not torch.equal(seen, images)
