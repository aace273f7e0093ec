"""CutMix, what is drawn for it, and where the learning rate falls."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmidd.augment import Strategy
from cmidd.options.recipe import Recipe, as_today, recipe_of
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmidd.training import train
from cmidd.training_draws import Mix, box, draw_epoch, draw_epochs, mixed, mixing_of
from tests.support.tiny import CPU, NETWORK

NONE = Strategy.parse("none")
RECIPE = Recipe(epochs=2, lr=0.1, batch_size=4, cutmix=0.5)
shares = st.floats(0, 1, exclude_max=True)


@given(shares, shares, shares, st.integers(1, 9), st.integers(1, 9))
def test_a_rectangle_lies_in_the_image_and_is_no_larger_than_drawn(
    u: float, row: float, column: float, height: int, width: int
) -> None:
    rows, columns = box(torch.tensor([u, row, column], dtype=torch.float64), height, width)
    assert 0 <= rows.start <= rows.stop <= height
    assert 0 <= columns.start <= columns.stop <= width
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    assert area <= (1 - u) * height * width + 1e-6


@given(st.integers(1, 5), st.integers(1, 3), shares, st.booleans())
def test_labels_are_mixed_as_pixels_are(batch: int, networks: int, u: float, soft: bool) -> None:
    # Each image is of one colour, that of its class: the mean colour is the mean of the classes.
    labels = torch.randint(3, (networks, batch), generator=generator("labels"))
    colours = torch.eye(3, dtype=torch.float64)[labels]  # (K, B, C)
    images = colours[..., None, None].expand(-1, -1, -1, 6, 7)
    partners = torch.stack(
        [torch.randperm(batch, generator=generator("partners", k)) for k in range(networks)]
    )
    numbers = torch.tensor([[u, 0.3, 0.6]] * networks, dtype=torch.float64)
    before = images.clone()
    found, classes = mixed(
        images, colours if soft else labels, mixing_of(Mix(partners, numbers), 6, 7), 3
    )
    torch.testing.assert_close(found.mean((3, 4)), classes)
    torch.testing.assert_close(classes.sum(2), torch.ones(networks, batch, dtype=torch.float64))
    assert torch.equal(images, before)


def test_a_rectangle_is_of_one_other_image() -> None:
    images = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 2, 8, 8)
    mix = Mix(torch.tensor([[1, 2, 3, 0]]), torch.tensor([[0.75, 0.5, 0.5]], dtype=torch.float64))
    found, classes = mixed(images, torch.tensor([[0, 1, 2, 3]]), mixing_of(mix, 8, 8), 4)
    for k in range(4):
        inside = found[0, k, :, 2:6, 2:6]
        assert (inside == (k + 1) % 4).all()
        assert int((found[0, k] == k).sum()) == 2 * (64 - 16)
        assert classes[0, k].tolist() == [
            0.75 if c == k else 0.25 if c == (k + 1) % 4 else 0 for c in range(4)
        ]


@pytest.mark.parametrize(
    ("probability", "least", "most"), [(0.0, 0, 0), (1.0, 200, 200), (0.5, 60, 140)]
)
def test_batches_are_mixed_as_often_as_asked_for(probability: float, least: int, most: int) -> None:
    recipe = replace(RECIPE, cutmix=probability)
    drawn = draw_epoch([0], 800, recipe, NONE, 0)
    mixing = [mix for mix in drawn.mixing if mix.numbers[0, 0] < 1]
    assert least <= len(mixing) <= most
    assert len(drawn.mixing) in (0, 200)


def test_a_network_draws_the_same_alone_and_beside_others() -> None:
    (alone,), (both,) = (
        list(draw_epochs(seeds, 10, replace(RECIPE, epochs=1), NONE)) for seeds in ([7], [5, 7])
    )
    for one, two in zip(alone.mixing, both.mixing, strict=True):
        assert torch.equal(one.partners[0], two.partners[1])
        assert torch.equal(one.numbers[0], two.numbers[1])


def test_fewer_images_of_an_epoch_are_its_first_ones() -> None:
    strategy = Strategy.parse("idc:color_crop")
    whole, part = (draw_epoch([3], 20, RECIPE, strategy, 0, taken) for taken in (None, 8))
    assert torch.equal(part.order, whole.order[:, :8])
    assert (len(part.augmentation), len(part.mixing)) == (2, 2)
    assert torch.equal(part.mixing[1].numbers, whole.mixing[1].numbers)
    assert torch.equal(part.augmentation[1].numbers, whole.augmentation[1].numbers)


def test_networks_of_one_seed_have_the_same_draws_which_are_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strategy, made = Strategy.parse("color_crop"), list[object]()
    of_one, of_both = (draw_epoch(seeds, 9, RECIPE, strategy, 1) for seeds in ([3], [3, 4]))

    def counted(*words: int | str) -> torch.Generator:
        made.append(words)
        return generator(*words)

    monkeypatch.setattr("cmidd.training_draws.generator", counted)
    both = draw_epoch([3, 3], 9, RECIPE, strategy, 1)
    assert len(made) == len(set(made))
    assert torch.equal(both.order, of_one.order.expand(2, -1))
    assert not torch.equal(both.order, of_both.order)
    for twice, once in zip(both.augmentation, of_one.augmentation, strict=True):
        assert torch.equal(twice.numbers, once.numbers.repeat(2, 1))
    for mixed_twice, mixed_once in zip(both.mixing, of_one.mixing, strict=True):
        assert torch.equal(mixed_twice.partners, mixed_once.partners.expand(2, -1))


def trained(recipe: Recipe, images: Tensor, labels: Tensor) -> Stack:
    stack = Stack.fresh(NETWORK, images.shape[1:], 3, [0, 1], CPU)
    train(stack, images, labels, recipe, NONE, draw_epochs([0, 1], len(images), recipe, NONE))
    return stack


def test_mixed_batches_train_another_network_that_is_the_same_again() -> None:
    images = torch.randn(9, 1, 8, 8, generator=generator("images"))
    labels = torch.arange(9) % 3
    plain, one, again = (
        trained(replace(RECIPE, cutmix=p), images, labels).state["head.weight"] for p in (0, 1, 1)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, plain)
    # A share of 0 of every other image is no mixing.
    soft = trained(replace(RECIPE, cutmix=1e-12), images, labels).state["head.weight"]
    torch.testing.assert_close(soft, plain)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Recipe(6, 1.0), [1, 1, 1, 0.1, 0.1, 0.1]),
        (Recipe(6, 1.0, drop_at=1.0), [1] * 6),
        (Recipe(6, 1.0, drop_by=5.0, drop_at=(4 / 6, 5 / 6)), [1, 1, 1, 1, 0.2, 0.04]),
        (
            Recipe(5, 1.0, drop_by=2.0, drop_at=(0.2, 0.4, 0.6, 0.8)),
            [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16],
        ),
        (Recipe(4, 1.0, schedule="cosine"), [1, 0.8535534, 0.5, 0.1464466]),
        (Recipe(2, 1.0, schedule="half_cosine", optimizer="sgd"), [1, 0.8535534]),
        (Recipe(4, 1.0, schedule="cosine", warm_up=2), [0.01, 0.505, 1, 0.5]),
        (Recipe(4, 1.0, drop_at=0.75, warm_up=1), [0.01, 1, 1, 0.1]),
    ],
)
def test_the_learning_rate_falls_where_the_recipe_says(
    recipe: Recipe, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step

    def noting(self: torch.optim.SGD) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    trained(recipe, torch.zeros(3, 1, 8, 8), torch.arange(3))
    assert rates == pytest.approx(expected)


def test_records_of_usual_recipes_say_what_they_always_said() -> None:
    usual = Recipe(3).as_record()
    names = "epochs lr momentum weight_decay batch_size drop_at augmentation precision"
    assert list(usual) == names.split()
    assert Recipe(**usual) == Recipe(3)
    more = replace(RECIPE, drop_by=5.0, drop_at=(0.5, 0.9), optimizer="adamw")
    assert Recipe.of_record(json.loads(json.dumps(more.as_record()))) == more
    assert set(more.as_record()) - set(usual) == {"cutmix", "drop_by", "optimizer"}
    along_cosine = replace(RECIPE, epochs=9, schedule="cosine", warm_up=5)
    assert Recipe.of_record(json.loads(json.dumps(along_cosine.as_record()))) == along_cosine
    assert set(along_cosine.as_record()) - set(usual) == {"cutmix", "schedule", "warm_up"}
    assert "falls to 0 along a cosine after 5 epochs of warm-up" in along_cosine.in_words()
    one = Recipe(3, drop_at=(0.5,))
    assert one == Recipe(3)
    assert one.as_record() == usual


def test_a_record_with_its_second_drop_by_itself_is_read_as_it_was_meant() -> None:
    older = {**Recipe(3, drop_at=0.666, drop_by=5.0).as_record(), "drop_again_at": 0.833}
    today = Recipe(3, drop_at=(0.666, 0.833), drop_by=5.0)
    assert Recipe.of_record(older) == today
    assert as_today(older) == today.as_record()
    of_set = {"epochs": 3, "drop_at": 0.666, "drop_again_at": 0.833, "drop_by": 5.0}
    assert recipe_of({"evaluation": of_set}).drops == (0.666, 0.833)
