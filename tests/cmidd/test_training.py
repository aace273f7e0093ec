from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd.evaluate import evaluate
from cmidd.networks import Network, build_network, initialize
from cmidd.options.recipe import PUBLISHED_RECIPE, Recipe
from cmidd.seeds import generator, seed_of
from cmidd.stack import Stack
from cmidd.training import fresh_and_trained, ranks_share_steps
from tests.support.steps import run
from tests.support.tiny import CPU, NETWORK, quiet, silent, tiny_dataset

DATASET = tiny_dataset()
IMAGES, LABELS = DATASET.to_input(DATASET.train.images), DATASET.train.labels
SHAPE = DATASET.shape
SPECS = [NETWORK, "convnet:width=4,depth=1,norm=batch", "mlp"]
PLAIN = Recipe(epochs=3, lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=5, drop_at=1.0)
RECIPES = {
    "plain": PLAIN,
    "momentum": replace(PLAIN, momentum=0.9),
    "weight decay": replace(PLAIN, weight_decay=0.1),
    "lr drop at half": replace(PLAIN, epochs=4, drop_at=0.5),
    "one batch": replace(PLAIN, batch_size=256),
    "several lr drops": replace(PLAIN, drop_by=2.0, drop_at=(0.3, 0.6)),
    "adamw": replace(PLAIN, lr=0.01, weight_decay=0.1, drop_at=0.5, optimizer="adamw"),
    "published for banks": Recipe(2, 0.01, 0.9, 1e-3, 7, 1.0),
}
DSA = "color_crop_cutout_flip_scale_rotate"


def fresh(seeds: Sequence[int], spec: str = NETWORK, dtype: torch.dtype = torch.float64) -> Stack:
    states = Stack.fresh(spec, SHAPE, 3, seeds, CPU).states()
    converted = [
        {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        for state in states
    ]
    return Stack(spec, SHAPE, 3, converted)


def trained(seeds: Sequence[int], recipe: Recipe, spec: str = NETWORK, **options: Any) -> Stack:
    stack = fresh(seeds, spec)
    run(stack, IMAGES.double(), LABELS, seeds, recipe, **options)
    return stack


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one
    )


def plain_loop(
    spec: str, images: Tensor, labels: Tensor, seed: int, recipe: Recipe
) -> tuple[Network, list[float]]:
    """An ordinary module and an optimizer of torch, and the mean loss of each epoch."""
    network = build_network(spec, SHAPE.channels, SHAPE.height, 3)
    initialize(network, generator(seed, "first weights"))
    network.to(images.dtype).train()
    parameters, decay = list(network.parameters()), recipe.weight_decay
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, recipe.lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, recipe.lr, recipe.momentum, weight_decay=decay)
    losses = []
    for epoch in range(recipe.epochs):
        fallen = [share for share in recipe.drops if epoch >= recipe.epochs * share]
        optimizer.param_groups[0]["lr"] = recipe.lr / recipe.drop_by ** len(fallen)
        total = 0.0
        order = torch.randperm(len(images), generator=generator(seed, "order", epoch))
        for rows in torch.split(order, recipe.batch_size):
            loss = F.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(rows) / len(images)
        losses.append(total)
    return network, losses


class Recording(Stack):
    """A stack that remembers the batches it was given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.batches.append(images.detach().clone())
        return super().__call__(images)


def seen(seeds: Sequence[int], recipe: Recipe, images: Tensor = IMAGES, **options: Any) -> Tensor:
    """Images `(K, all of all epochs, ...)` in the order in which networks see them."""
    stack = Recording(NETWORK, SHAPE, 3, Stack.fresh(NETWORK, SHAPE, 3, seeds, CPU).states())
    run(stack, images, LABELS, seeds, recipe, **options)
    return torch.cat(stack.batches, dim=1)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_training_is_a_plain_loop_with_torchs_optimizers(spec: str, recipe: Recipe) -> None:
    network, _ = plain_loop(spec, IMAGES.double(), LABELS, 5, recipe)
    (state,) = trained([5], recipe, spec).states()
    assert same(state, network.state_dict(), 1e-9)


@pytest.mark.parametrize("spec", [NETWORK, "mlp"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_networks_in_a_stack_are_those_trained_alone(spec: str, recipe: Recipe) -> None:
    recipe = replace(recipe, augmentation=DSA)
    seeds = [3, 4, 5]
    stack = trained(seeds, recipe, spec)
    for seed, state in zip(seeds, stack.states(), strict=True):
        (alone,) = trained([seed], recipe, spec).states()
        assert same(state, alone, 0.0)


@pytest.mark.parametrize("spec", [NETWORK, "resnet18:width=4,norm=group"])
def test_networks_in_a_stack_are_those_trained_alone_in_float32(spec: str) -> None:
    recipe = RECIPES["published for banks"]
    stack = fresh_and_trained(spec, IMAGES, LABELS, 3, [3, 4], recipe, on_epoch=silent)
    for seed, state in zip([3, 4], stack.states(), strict=True):
        alone = fresh_and_trained(spec, IMAGES, LABELS, 3, [seed], recipe, on_epoch=silent)
        assert same(state, alone.states()[0], 0.0)


def test_a_network_depends_on_its_seed_alone() -> None:
    first, second, again = trained([3, 4, 3], PLAIN).states()
    assert same(first, again, 0.0)
    assert not same(first, second, 1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_the_mean_loss_of_every_epoch_is_told(count: int) -> None:
    told: list[tuple[int, float]] = []
    seeds = list(range(count))
    run(fresh(seeds), IMAGES.double(), LABELS, seeds, PLAIN, on_epoch=lambda *a: told.append(a))
    of_each = [plain_loop(NETWORK, IMAGES.double(), LABELS, seed, PLAIN)[1] for seed in seeds]
    expected = [statistics.mean(losses) for losses in zip(*of_each, strict=True)]
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert [loss for _, loss in told] == pytest.approx(expected, rel=1e-6)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own() -> None:
    found = seen([3, 4], PLAIN)
    numbers = (found[:, :, None] == IMAGES).flatten(3).all(3).long().argmax(2)  # (K, 3 epochs x N)
    orders = [tuple(order.tolist()) for row in numbers for order in row.view(3, len(IMAGES))]
    assert all(sorted(order) == list(range(len(IMAGES))) for order in orders)
    assert len(set(orders)) == 6


def test_soft_labels_of_one_class_are_labels() -> None:
    one_hot = F.one_hot(LABELS, 3).double()
    stack = fresh([5])
    run(stack, IMAGES.double(), one_hot, [5], PLAIN)
    assert same(stack.states()[0], trained([5], PLAIN).states()[0], 1e-12)


@pytest.mark.parametrize("seeds", [[5], [5, 6]])
def test_soft_labels_are_probabilities(seeds: list[int]) -> None:
    soft = torch.rand(len(IMAGES), 3, generator=generator("soft"), dtype=torch.float64)
    soft /= soft.sum(1, keepdim=True)
    stack = fresh(seeds)
    run(stack, IMAGES.double(), soft, seeds, PLAIN)
    network, _ = plain_loop(NETWORK, IMAGES.double(), soft, 5, PLAIN)
    assert same(stack.states()[0], network.state_dict(), 1e-9)


def test_augmentation_depends_on_the_seed_of_the_network() -> None:
    recipe = replace(PLAIN, augmentation=DSA)
    images = IMAGES[:1].expand(len(IMAGES), -1, -1, -1).contiguous()
    together = seen([3, 4], recipe, images)
    assert not torch.equal(together[0], together[1])
    for row, seed in zip(together, [3, 4], strict=True):
        assert torch.equal(row, seen([seed], recipe, images)[0])


def test_augmentation_differs_from_image_to_image_and_epoch_to_epoch() -> None:
    images = IMAGES[:1].expand(len(IMAGES), -1, -1, -1).contiguous()
    found = seen([3], replace(PLAIN, augmentation="rotate"), images)[0]
    assert len(torch.unique(found, dim=0)) == len(found)


def test_images_that_may_not_be_mirrored_are_not() -> None:
    images = IMAGES[:1].expand(len(IMAGES), -1, -1, -1).contiguous()
    recipe = replace(PLAIN, augmentation="flip")
    assert torch.equal(seen([3], recipe, images, mirror=False)[0, : len(images)], images)
    assert not torch.equal(seen([3], recipe, images, mirror=True)[0, : len(images)], images)


EVALUATED = replace(PLAIN, lr=0.02, epochs=2)


def evaluated(networks: Sequence[str] = (NETWORK,), **options: Any) -> list[tuple[float, ...]]:
    found = evaluate(
        IMAGES, LABELS, DATASET, networks, recipe=EVALUATED, device=CPU, say=quiet, **options
    )
    return [accuracy.accuracies for accuracy in found]


def test_evaluation_trains_fresh_networks_and_tests_them() -> None:
    expected = []
    for k in range(3):
        seeds = [seed_of(8, "evaluation", k)]
        stack = fresh_and_trained(NETWORK, IMAGES, LABELS, 3, seeds, EVALUATED, on_epoch=silent)
        expected += stack.accuracy(list(DATASET.batches(DATASET.test, CPU)))
    assert evaluated(repeats=3, seed=8) == [tuple(expected)]


def test_evaluation_is_the_same_however_many_are_trained_together() -> None:
    alone = evaluated(repeats=5, together=1)
    assert evaluated(repeats=5, together=2) == alone
    assert evaluated(repeats=3, together=5) == [alone[0][:3]]


def test_evaluation_reports_each_architecture() -> None:
    said: list[str] = []
    networks = [NETWORK, "mlp"]
    found = evaluate(
        IMAGES, LABELS, DATASET, networks, repeats=3, recipe=EVALUATED, device=CPU, say=said.append
    )
    assert [accuracy.network for accuracy in found] == networks
    for accuracy, line in zip(found, said, strict=True):
        values = torch.tensor(accuracy.accuracies, dtype=torch.float64)
        assert accuracy.mean == pytest.approx(float(values.mean()))
        assert accuracy.std == pytest.approx(float(values.std(correction=0)))
        text = f"{accuracy.network}: {accuracy.mean:.1%} +- {accuracy.std:.1%} of 18 test images"
        assert line.startswith(text)
        record = json.loads(json.dumps(accuracy.as_record()))
        assert record["accuracies"] == list(accuracy.accuracies)
        assert (record["mean"], record["std"]) == (accuracy.mean, accuracy.std)
        assert record["recipe"]["epochs"] == 2


def test_the_published_protocol() -> None:
    assert Recipe(1000, 0.01, 0.9, 5e-4, 256, 0.5, DSA) == PUBLISHED_RECIPE


def test_batches_are_the_normalised_images_in_order() -> None:
    images, labels = zip(*DATASET.batches(DATASET.test, CPU, 7), strict=True)
    assert [len(batch) for batch in images] == [7, 7, 4]
    assert torch.equal(torch.cat(images), DATASET.to_input(DATASET.test.images))
    assert torch.equal(torch.cat(labels), DATASET.test.labels)


@pytest.mark.parametrize(
    ("device", "images", "pixels", "batch_size", "expected"),
    [
        ("cpu", 2, 8, 1, True),
        ("meta", 1000, 32, 256, False),  # in the place of a GPU
        ("meta", 1000, 64, 255, False),
        ("meta", 1000, 64, 256, True),
        ("meta", 255, 64, 1000, False),
    ],
)
def test_ranks_share_steps_on_a_cpu_and_those_that_are_long_on_a_gpu(
    device: str,
    images: int,
    pixels: int,
    batch_size: int,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = torch.empty(images, 3, pixels, pixels, device=device)
    assert not ranks_share_steps(there, batch_size)  # of one process
    monkeypatch.setattr("cmidd.ranks.count", lambda: 2)
    assert ranks_share_steps(there, batch_size) == expected
