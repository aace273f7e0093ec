from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmidd.options.recipe import Recipe
from cmidd.stack import Stack, network_of, networks_together
from cmidd.training import fresh_and_trained
from tests.support.tiny import CPU, NETWORK, silent, tiny_dataset

DATASET = tiny_dataset()
IMAGES, LABELS = DATASET.to_input(DATASET.train.images), DATASET.train.labels
SHAPE = DATASET.shape
SPECS = [NETWORK, "convnet:width=4,depth=1,norm=batch", "mlp"]
RECIPE = Recipe(epochs=1, lr=0.01, momentum=0.0, weight_decay=0.0, batch_size=5, drop_at=1.0)


@pytest.mark.parametrize("spec", SPECS)
def test_accuracy_is_that_of_the_network_itself(spec: str) -> None:
    stack = fresh_and_trained(spec, IMAGES, LABELS, 3, [0], RECIPE, on_epoch=silent)
    network = network_of(spec, SHAPE, 3, stack.states()[0]).eval()
    right = network(DATASET.to_input(DATASET.test.images)).argmax(1) == DATASET.test.labels
    expected = int(right.sum()) / len(right)
    batches = [
        (images[rows], labels[rows])
        for images, labels in DATASET.batches(DATASET.test, CPU)
        for rows in (slice(0, 7), slice(7, None))
    ]
    assert stack.accuracy(batches) == pytest.approx([expected])


def test_accuracies_of_a_stack_are_those_of_its_networks() -> None:
    seeds = list(range(4))
    recipe = replace(RECIPE, epochs=3)
    stack = fresh_and_trained(NETWORK, IMAGES, LABELS, 3, seeds, recipe, on_epoch=silent)
    batches = list(DATASET.batches(DATASET.test, CPU))
    alone = [Stack(NETWORK, SHAPE, 3, [state]).accuracy(batches)[0] for state in stack.states()]
    assert stack.accuracy(batches) == alone
    assert len(set(alone)) > 1


def test_a_rank_without_images_of_a_batch_takes_parts_too() -> None:
    there = torch.device("meta")  # in the place of a GPU, which takes all of a batch together
    stack = Stack.fresh(NETWORK, SHAPE, 3, [0], there)
    for count, expected in ((0, 1), (1, 1), (7, 7)):
        assert stack.images_per_chunk(torch.empty(count, *SHAPE, device=there)) == expected


def test_a_network_around_a_state_shares_it() -> None:
    state = Stack.fresh(NETWORK, SHAPE, 3, [0], CPU).states()[0]
    network = network_of(NETWORK, SHAPE, 3, state)
    assert network.head.weight.data_ptr() == state["head.weight"].data_ptr()


@pytest.mark.parametrize(
    ("spec", "device", "asked", "expected"),
    [
        ("convnet", "cpu", None, 1),
        ("convnet", "cuda", None, 5),
        ("convnet:norm=batch", "cuda", None, 1),
        ("imagenet_resnet18", "cuda", None, 1),
        ("imagenet_resnet18:norm=group", "cuda", None, 1),
        ("resnet18:norm=instance", "cuda", None, 1),
        ("vgg11", "cuda", None, 5),
        ("convnet", "cpu", 3, 3),
    ],
)
def test_networks_go_together_on_a_gpu_where_they_can(
    spec: str, device: str, asked: int | None, expected: int
) -> None:
    assert networks_together(spec, torch.device(device), asked) == expected
