from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cmidd.augment import Strategy, augment, draw
from cmidd.datasets import Dataset
from cmidd.evaluate import evaluate
from cmidd.evaluation_protocol import evaluation_protocol
from cmidd.first_images import first_images
from cmidd.networks import build_network, initialize
from cmidd.options.evaluation import EvaluateOptions
from cmidd.options.recipe import DSA, PUBLISHED_RECIPE, Recipe
from cmidd.seeds import generator, seed_of
from cmidd.stack import Stack
from cmidd.synthetic import SyntheticSet
from tests.support.steps import run
from tests.support.tiny import CPU, NETWORK, quiet, tiny_dataset

DATASET = tiny_dataset()
RECIPE = Recipe(epochs=4, lr=0.01, batch_size=4)


def a_set(dataset: Dataset = DATASET, ipc: int = 3, **record: Any) -> SyntheticSet:
    return SyntheticSet.of(dataset, *first_images(dataset, ipc, "real", 0), record)


def soft_labels(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=generator("soft", seed)).softmax(1)


def evaluated(made: SyntheticSet, dataset: Dataset, recipe: Recipe, **more: Any) -> Any:
    (found,) = evaluate(
        made.images, made.targets, dataset, [NETWORK], recipe=recipe, device=CPU, say=quiet, **more
    )
    return found


# --- what is the set's own


@pytest.mark.parametrize(
    ("record", "given", "rate", "origin"),
    [
        ({}, None, 0.01, "of the protocol"),
        ({}, 0.3, 0.3, "as given"),
        ({"learned_lr": 0.02}, None, 0.02, "as the set learned it"),
        ({"learned_lr": 0.02}, 0.01, 0.01, "as given"),
        ({"learned_lr": 2}, None, 2.0, "as the set learned it"),
    ],
)
def test_the_learning_rate_is_the_users_or_the_sets_or_the_protocols(
    record: dict[str, Any], given: float | None, rate: float, origin: str
) -> None:
    found = evaluation_protocol(a_set(**record), DATASET, PUBLISHED_RECIPE, given)
    assert found.recipe == replace(PUBLISHED_RECIPE, lr=rate)
    assert f"learning rate {rate:g} ({origin})" in found.about


def test_epochs_and_augmentation_are_the_users_or_the_sets_or_the_protocols() -> None:
    of_dc: dict[str, Any] = {"epochs": 300, "augmentation": "none"}
    assert EvaluateOptions().recipe({}) == PUBLISHED_RECIPE
    assert EvaluateOptions().recipe({"evaluation": of_dc}) == replace(PUBLISHED_RECIPE, **of_dc)
    of_idc: dict[str, Any] = {"batch_size": 64, "cutmix": 0.5, "drop_at": 0.666, "drop_by": 5.0}
    assert EvaluateOptions().recipe({"evaluation": of_idc}) == replace(PUBLISHED_RECIPE, **of_idc)
    told = EvaluateOptions(batch_size=8, cutmix=0.0).recipe({"evaluation": of_idc})
    assert (told.batch_size, told.cutmix, told.drop_by) == (8, 0.0, 5.0)
    with pytest.raises(ValueError, match="cutmix: expected a probability from 0 to 1, got 2"):
        EvaluateOptions(random_real=1, cutmix=2.0).check()
    with pytest.raises(ValueError, match="drop_at: expected it with schedule drops, got"):
        EvaluateOptions(random_real=1, schedule="cosine", drop_at=(0.5,)).check()
    with pytest.raises(ValueError, match="warm_up: expected fewer epochs than the 5 in all, got 5"):
        EvaluateOptions(random_real=1, epochs=5, warm_up=5).recipe({})
    given = EvaluateOptions(epochs=7, augmentation="crop", weight_decay=0.0, batch_size=3)
    expected = replace(
        PUBLISHED_RECIPE, epochs=7, augmentation="crop", weight_decay=0.0, batch_size=3
    )
    assert given.recipe({"evaluation": of_dc}) == expected


def test_what_a_set_says_of_its_optimizer_is_not_taken_for_another() -> None:
    """Weight decay 0.01 is the default of torch's AdamW, with which sets of NCFM are judged."""
    of_ncfm: dict[str, Any] = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "batch_size": 128,
    }
    record = {"evaluation": of_ncfm}
    as_recorded = replace(PUBLISHED_RECIPE, **of_ncfm)
    assert EvaluateOptions().recipe(record) == as_recorded
    assert EvaluateOptions(optimizer="adamw").recipe(record) == as_recorded
    by_sgd = EvaluateOptions(optimizer="sgd").recipe(record)
    assert by_sgd == replace(PUBLISHED_RECIPE, batch_size=128)
    given = EvaluateOptions(optimizer="sgd", weight_decay=0.1).recipe(record)
    assert given == replace(by_sgd, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay: expected at least 0, got -1"):
        EvaluateOptions(weight_decay=-1.0)


def test_the_test_images_are_whitened_as_the_set_is_and_by_its_own_whitening() -> None:
    images = DATASET.test.images
    own = DATASET.whitened(0.5)
    for dataset in (DATASET, DATASET.whitened()):
        found = evaluation_protocol(a_set(own), dataset, PUBLISHED_RECIPE)
        assert torch.equal(found.dataset.to_input(images), own.to_input(images))
        assert found.about.endswith("hard labels, ZCA: the set's own, eps 0.5")
        plain = evaluation_protocol(a_set(), dataset, PUBLISHED_RECIPE)
        assert torch.equal(plain.dataset.to_input(images), DATASET.to_input(images))
        assert plain.about.endswith("ZCA: none")


def test_soft_labels_are_said() -> None:
    made = replace(a_set(), soft_labels=soft_labels(9))
    assert "soft labels" in evaluation_protocol(made, DATASET, PUBLISHED_RECIPE).about
    assert "\n" not in evaluation_protocol(made, DATASET, PUBLISHED_RECIPE).about


# --- training on it


def test_a_saved_set_is_evaluated_as_training_by_hand_does(tmp_path: Path) -> None:
    """Whitening, step size and soft labels from the file; a plain module, loop and optimiser."""
    whitened = DATASET.whitened()
    made = replace(a_set(whitened, learned_lr=0.05), soft_labels=soft_labels(9))
    made.save(tmp_path / "set")
    loaded = SyntheticSet.load(tmp_path / "set")
    dataset, recipe, _ = evaluation_protocol(loaded, DATASET, RECIPE)
    found = evaluated(loaded, dataset, recipe, repeats=3)
    expected = []
    for k in range(3):
        seed = seed_of(0, "evaluation", k)
        network = build_network(NETWORK, 1, 8, 3)
        initialize(network, generator(seed, "first weights"))
        optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4)
        for epoch in range(4):
            optimizer.param_groups[0]["lr"] = 0.05 if epoch < 2 else 0.005
            order = torch.randperm(9, generator=generator(seed, "order", epoch))
            for rows in torch.split(order, 4):
                assert made.soft_labels is not None
                logs = network(made.images[rows]).log_softmax(1)
                loss = -(made.soft_labels[rows] * logs).sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        right = network(whitened.to_input(DATASET.test.images)).argmax(1) == DATASET.test.labels
        expected.append(float(right.double().mean()))
    assert found.accuracies == tuple(expected)
    assert found.recipe.lr == 0.05
    in_the_wrong_space = evaluated(loaded, DATASET, recipe, repeats=3)
    with_the_wrong_rate = evaluated(loaded, dataset, RECIPE, repeats=3)
    with_hard_labels = evaluated(replace(loaded, soft_labels=None), dataset, recipe, repeats=3)
    for wrong in (in_the_wrong_space, with_the_wrong_rate, with_hard_labels):
        assert wrong.accuracies != found.accuracies  # else this test could not fail


@pytest.mark.parametrize("augmentation", ["none", DSA, "all:color_crop"])
def test_networks_in_a_stack_learn_soft_labels_as_alone(augmentation: str) -> None:
    recipe = replace(RECIPE, augmentation=augmentation)
    images, targets, seeds = a_set().images.double(), soft_labels(9).double(), [3, 4, 5]
    stack = _trained(images, targets, seeds, recipe)
    for seed, state in zip(seeds, stack.states(), strict=True):
        (alone,) = _trained(images, targets, [seed], recipe).states()
        for name in state:
            torch.testing.assert_close(state[name], alone[name], rtol=1e-8, atol=1e-8)


def test_augmented_steps_on_soft_labels_are_those_of_a_plain_loop() -> None:
    recipe = replace(RECIPE, augmentation=DSA, drop_at=1.0)
    images, targets = a_set().images.double(), soft_labels(9).double()
    (state,) = _trained(images, targets, [7], recipe).states()
    network = build_network(NETWORK, 1, 8, 3)
    initialize(network, generator(7, "first weights"))
    network.double()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=5e-4)
    strategy = Strategy.parse(DSA)
    for epoch in range(4):
        order = torch.randperm(9, generator=generator(7, "order", epoch))
        for step, rows in enumerate(torch.split(order, 4)):
            drawn = draw(
                strategy, len(rows), generator(7, "augmentation", epoch, step), one_operation=True
            )
            logits = network(augment(images[rows], strategy, drawn))
            optimizer.zero_grad()
            F.cross_entropy(logits, targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, expected in network.state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=1e-8, atol=1e-8)


def test_soft_labels_that_are_sure_are_hard_labels() -> None:
    made = a_set()
    sure = replace(made, soft_labels=F.one_hot(made.labels, 3).float())
    assert evaluated(sure, DATASET, RECIPE).accuracies == pytest.approx(
        evaluated(made, DATASET, RECIPE).accuracies
    )


def _trained(images: Tensor, targets: Tensor, seeds: list[int], recipe: Recipe) -> Stack:
    states = Stack.fresh(NETWORK, (1, 8, 8), 3, seeds, CPU).states()
    doubled = [{name: tensor.double() for name, tensor in state.items()} for state in states]
    stack = Stack(NETWORK, (1, 8, 8), 3, doubled)
    run(stack, images, targets, seeds, recipe)
    return stack
