from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.first_images import first_images
from cmidd.methods import Method
from cmidd.methods.class_draws import ClassShare, draw_for_classes, draw_real_rows
from cmidd.methods.dc import GradientMatching
from cmidd.methods.dm import DM
from cmidd.networks import build_network, draw_weights, initialize
from cmidd.options.dm import DMOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.recipe import DSA
from cmidd.seeds import generator
from tests.support.tiny import CPU, NETWORK

SIZES = (7, 12, 4, 9)


def classes_of(draws: Any) -> list[Tensor]:
    """What a method drew for each class: real rows, one operation and its numbers."""
    drawn = draws.augmentation
    return [
        torch.cat([rows.double(), operations.double(), numbers])
        for rows, operations, numbers in zip(
            draws.real, drawn.operations, drawn.numbers, strict=True
        )
    ]


def method(name: str, dataset: Dataset) -> Method:
    labels = torch.arange(dataset.num_classes)
    if name == "dm":
        return DM(dataset, labels, DMOptions(NETWORK, batch_real=5), 3, CPU)
    options = DSAOptions(NETWORK, batch_real=5, outer_steps=3, inner_epochs=2)
    return GradientMatching(dataset, labels, options, 3, CPU)


@pytest.mark.parametrize("name", ["dm", "dsa"])
@pytest.mark.parametrize("update", [0, 1])
def test_a_class_draws_the_same_whatever_other_classes_there_are(name: str, update: int) -> None:
    few, all_ = (method(name, random_dataset(sizes, 8)) for sizes in (SIZES[:2], SIZES))
    update = 0 if name == "dm" else update
    own = classes_of(few.draw(5, update))
    assert all(map(torch.equal, own, classes_of(all_.draw(5, update))[:2]))
    for other in (few.draw(6, update), few.draw(5, 2)) if name == "dsa" else (few.draw(6, 0),):
        assert not any(map(torch.equal, own, classes_of(other)))


def test_draws_are_plain_tensors_of_the_cpu_and_change_nothing() -> None:
    loop = method("dsa", random_dataset(SIZES, 8))
    state = torch.get_rng_state()
    first, again = loop.draw(2, 1), loop.draw(2, 1)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first.epochs, again.epochs, strict=True):
        assert torch.equal(one.order, other.order)
        assert one.order.device.type == "cpu"
        assert [d.numbers.tolist() for d in one.augmentation] == [
            d.numbers.tolist() for d in other.augmentation
        ]


def test_the_mathematics_takes_draws_that_it_is_given() -> None:
    loop = method("dm", random_dataset(SIZES, 8))
    images = torch.randn(4, 3, 8, 8, generator=generator("images"))
    given = loop.draw(7, 0)
    expected = loop.loss_and_gradient(images, given)
    loop.loss_and_gradient(images, loop.draw(1, 0))
    again = loop.loss_and_gradient(images, given)
    assert all(map(torch.equal, again, expected))


def test_real_rows_are_different_images_of_the_class() -> None:
    real = random_dataset(SIZES, 8).train
    for count in (3, 100):
        rows = draw_real_rows(real, range(real.num_classes), count, 0, "real", 1)
        for own, (first, last) in zip(rows, itertools.pairwise(real.offsets), strict=True):
            assert len(set(own.tolist())) == min(count, int(last - first))
            assert first <= own.min() <= own.max() < last


def test_every_class_has_an_operation_of_its_own() -> None:
    drawn = draw_for_classes(Strategy.parse(DSA), range(100), 0, "dsa", 1)
    assert drawn.operations.shape == (100, 1)
    assert len(set(drawn.operations.flatten().tolist())) == 6
    assert len(set(drawn.numbers[:, 0].tolist())) == 100


@pytest.mark.parametrize("init", ["noise", "mix", "real"])
def test_first_images_of_a_class_do_not_depend_on_other_classes(init: str) -> None:
    few, all_ = (random_dataset(sizes, 8) for sizes in (SIZES[:2], SIZES))
    images = first_images(few, 2, init, 0)[0]
    assert torch.equal(images, first_images(all_, 2, init, 0)[0][:4])
    assert len({tuple(image.flatten().tolist()) for image in images}) == 4


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_drawn_weights_are_those_that_a_network_is_initialised_with(norm: str) -> None:
    network = build_network(f"{NETWORK},norm={norm}", 1, 8, 3)
    drawn = draw_weights(network, generator("weights"))
    initialize(network.double(), generator("weights"))
    state = network.state_dict()
    assert drawn.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(drawn[name].to(tensor.dtype), tensor, rtol=0, atol=0)


def test_on_a_gpu_the_real_images_of_a_rank_are_a_part_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = random_dataset(SIZES, 8)
    monkeypatch.setattr("cmidd.ranks.count", lambda: 2)
    monkeypatch.setattr("cmidd.ranks.number", lambda: 1)
    share = ClassShare.of(dataset, torch.arange(len(SIZES)))
    mine, every = share.real_images_of_all(dataset.train, torch.device("meta"))
    assert isinstance(mine, Tensor)
    assert mine._base is every
    assert (len(mine), len(every)) == (13, sum(SIZES))
    found, _ = share.real_images_of_all(dataset.train, CPU)
    assert isinstance(found, Tensor)
    assert torch.equal(found, dataset.train.images[-13:])
