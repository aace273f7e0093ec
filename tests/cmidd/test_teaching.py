"""What networks learn of teachers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmidd.augment import Strategy
from cmidd.evaluate import evaluate
from cmidd.networks import build_network
from cmidd.options.evaluation import EvaluateOptions
from cmidd.options.recipe import PUBLISHED_RECIPE, STUDENT_RECIPE, Recipe, recipe_of
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import TeacherNetworks, objective_of, soft_loss
from cmidd.training import train
from cmidd.training_draws import draw_epochs
from tests.support.labels import a_teacher
from tests.support.tiny import CPU, NETWORK, tiny_dataset

DATASET = tiny_dataset()
IMAGES = DATASET.to_input(DATASET.train.images, torch.float64)
LABELS = DATASET.train.labels
RECIPES = {
    "kl": Recipe(1, soft_loss="kl", temperature=20.0),
    "kl times the square": Recipe(1, soft_loss="kl", temperature=3.0, temperature_squared=True),
    "kl and labels": Recipe(1, soft_loss="kl", temperature=4.0, ce_weight=0.5),
    "mse": Recipe(1, soft_loss="mse"),
    "mse and labels": Recipe(1, soft_loss="mse", ce_weight=0.1),
}


def plain_loss(found: Tensor, logits: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """One image after the other, by the formulas."""
    total = found.new_zeros(())
    for s, t, y in zip(found, logits, labels, strict=True):
        if recipe.soft_loss == "mse":
            total = total + sum((s - t) ** 2) / len(s)
        else:
            temperature = recipe.temperature
            p, q = (torch.exp(z / temperature) for z in (t, s))
            p, q = p / p.sum(), q / q.sum()
            factor = temperature * temperature if recipe.temperature_squared else 1
            total = total + factor * (p * (p.log() - q.log())).sum()
        q = torch.exp(s) / torch.exp(s).sum()
        total = total - recipe.ce_weight * (y * q.log()).sum()
    return total


@pytest.mark.parametrize("name", RECIPES)
def test_value_and_gradient_are_those_of_the_formulas(name: str) -> None:
    draws, recipe = generator("logits"), RECIPES[name]
    found = torch.randn(6, 5, dtype=torch.float64, generator=draws, requires_grad=True)
    logits = 3 * torch.randn(6, 5, dtype=torch.float64, generator=draws)
    labels = torch.randn(6, 5, dtype=torch.float64, generator=draws).softmax(1)
    losses = [of(found, logits, labels, recipe) for of in (soft_loss, plain_loss)]
    gradients = [torch.autograd.grad(loss, found)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["kl", "mse"])
def test_a_network_that_finds_the_teachers_logits_has_nothing_to_learn(name: str) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=generator("logits"))
    found = logits.clone().requires_grad_()
    loss = soft_loss(found, logits, logits.softmax(1), RECIPES[name])
    assert abs(loss.item()) < 1e-12
    assert torch.autograd.grad(loss, found)[0].abs().max() < 1e-12


def trained(seeds: list[int], recipe: Recipe, teacher: TeacherNetworks) -> Stack:
    strategy = Strategy.parse(recipe.augmentation)
    stack = Stack.fresh(NETWORK, DATASET.shape, 3, seeds, CPU)
    stack = Stack(
        NETWORK,
        DATASET.shape,
        3,
        [{name: each.double() for name, each in state.items()} for state in stack.states()],
    )
    epochs = draw_epochs(seeds, len(IMAGES), recipe, strategy)
    train(stack, IMAGES, LABELS, recipe, strategy, epochs, objective=objective_of(recipe),
          teach=teacher)  # fmt: skip
    return stack


@pytest.mark.parametrize("name", RECIPES)
def test_training_is_a_plain_loop_on_the_mean_of_the_teachers_logits(name: str) -> None:
    recipe = replace(RECIPES[name], epochs=2, batch_size=7, lr=0.05, momentum=0.0, weight_decay=0)
    teachers = [a_teacher(k) for k in range(2)]
    found = trained([3], recipe, TeacherNetworks(teachers)).states()[0]
    network = build_network(NETWORK, 1, 8, 3)
    first = Stack.fresh(NETWORK, DATASET.shape, 3, [3], CPU).states()[0]
    network.load_state_dict(first)
    network.double()
    for epoch, drawn in enumerate(draw_epochs([3], 18, recipe, Strategy.parse("none"))):
        for rows in torch.split(drawn.order[0], 7):
            logits = (teachers[0](IMAGES[rows]) + teachers[1](IMAGES[rows])) / 2
            labels = torch.eye(3, dtype=torch.float64)[LABELS[rows]]
            loss = plain_loss(network(IMAGES[rows]), logits, labels, recipe) / len(rows)
            parameters = list(network.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.data -= recipe.lr_in(epoch) * gradient
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-9, atol=1e-9)


def test_networks_that_are_taught_together_are_those_taught_alone() -> None:
    recipe = replace(RECIPES["kl and labels"], epochs=2, batch_size=5, augmentation="all:zoom_flip",
                     cutmix=0.7, lr=0.1)  # fmt: skip
    teacher = TeacherNetworks([a_teacher(0)])
    together = trained([1, 2], recipe, teacher).states()
    for seed, state in zip((1, 2), together, strict=True):
        (alone,) = trained([seed], recipe, teacher).states()
        for name in state:
            torch.testing.assert_close(state[name], alone[name], rtol=1e-9, atol=1e-9)


def test_a_teacher_that_cannot_teach_is_named() -> None:
    with pytest.raises(ValueError, match="teachers: expected at least one network, got none"):
        TeacherNetworks([])
    with pytest.raises(ValueError, match="teachers: expected networks in eval mode, got one in"):
        TeacherNetworks([a_teacher(0).train()])
    a_set = SyntheticSet.of(DATASET, IMAGES.float(), LABELS)
    with pytest.raises(ValueError, match="recipe: expected soft_loss kl or mse, to learn logits"):
        TeacherNetworks([a_teacher(0)]).check(a_set, DATASET, PUBLISHED_RECIPE)


def test_a_teacher_and_a_recipe_for_labels_are_not_evaluated_together_nor_the_reverse() -> None:
    found = partial(evaluate, IMAGES.float(), LABELS, DATASET, [NETWORK], device=CPU)
    with pytest.raises(ValueError, match="recipe: expected soft_loss kl or mse, to learn logits"):
        found(recipe=Recipe(1), teacher=TeacherNetworks([a_teacher(0)]))
    with pytest.raises(ValueError, match=r"recipe: expected a teacher or a file .* soft_loss kl,"):
        found(recipe=RECIPES["kl"])


def test_logits_in_the_loop_are_of_the_classes_and_finite() -> None:
    of_eight = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).double().eval()
    with pytest.raises(ValueError, match=r"expected logits of 3 classes, got \(18, 8\) of 18 "):
        trained([1], RECIPES["kl"], TeacherNetworks([a_teacher(0), of_eight]))
    broken = a_teacher(0)
    broken.head.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="teachers: expected finite logits, got NaN"):
        trained([1], RECIPES["kl"], TeacherNetworks([broken]))


def test_a_teacher_of_batches_that_ranks_share_is_refused() -> None:
    stack = Stack.fresh(NETWORK, DATASET.shape, 3, [1], CPU)
    with pytest.raises(ValueError, match="teach: expected it where ranks do not share"):
        train(stack, IMAGES, LABELS, RECIPES["kl"], Strategy.parse("none"), [], shared=True,
              teach=TeacherNetworks([a_teacher(0)]))  # fmt: skip


# --- recipes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"soft_loss": "l1"}, "soft_loss: expected none or kl or mse, got 'l1'"),
        ({"temperature": 0.0}, "temperature: expected more than 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature: expected more than 0, got nan"),
        ({"ce_weight": -0.1}, "ce_weight: expected at least 0, got -0.1"),
        ({"cutmix": -0.5}, "cutmix: expected a probability from 0 to 1, got -0.5"),
        ({"zoom": 0.0}, "zoom: expected a share of the area up to 1, got 0"),
        ({"drop_at": (0.5, 1.5)}, "drop_at: expected shares of the epochs from 0 to 1, got 0.5"),
    ],
)
def test_a_recipe_that_nothing_can_be_trained_by_is_named(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(3, **wrong)


OF_SRE2L: dict[str, Any] = {"epochs": 100, "optimizer": "sgd", "lr": 0.2, "soft_loss": "kl",
                            "temperature": 20.0, "temperature_squared": True}  # fmt: skip


def test_the_recipe_is_as_given_or_as_published_for_a_teacher_or_as_usual_for_one() -> None:
    assert recipe_of({}, taught={}) == STUDENT_RECIPE
    of_dm = {"evaluation": {"epochs": 1000, "batch_size": 64}}
    assert recipe_of(of_dm, taught={}) == STUDENT_RECIPE
    published = recipe_of({"evaluation": OF_SRE2L}, taught={"batch_size": 16})
    expected = {**OF_SRE2L, "batch_size": 16, "weight_decay": 5e-4}
    assert published == replace(STUDENT_RECIPE, **expected)
    given = recipe_of({"evaluation": OF_SRE2L}, taught={}, temperature=4.0, optimizer="adamw")
    assert (given.temperature, given.lr, given.weight_decay) == (4.0, 1e-3, 0.01)
    by_sgd = recipe_of({}, taught={}, optimizer="sgd")
    assert (by_sgd.lr, by_sgd.weight_decay, by_sgd.schedule) == (0.01, 5e-4, "cosine")
    assert recipe_of({}, taught={}, drop_at=(0.5,)).lr_in(200) == pytest.approx(1e-4)
    other = recipe_of({"evaluation": {**OF_SRE2L, "ce_weight": 0.5}}, taught={}, soft_loss="mse")
    assert other == replace(
        STUDENT_RECIPE, epochs=100, optimizer="sgd", lr=0.2, weight_decay=5e-4, soft_loss="mse",
        temperature=1.0,
    )  # fmt: skip
    along_cosine = {"evaluation": {"schedule": "cosine"}}
    assert recipe_of(along_cosine, drop_at=(0.5,)).schedule == "drops"
    by_mse = recipe_of({}, taught={}, soft_loss="mse", ce_weight=0.1)
    assert by_mse.loss_in_words() == "MSE of logits + 0.1 cross-entropy"


def test_what_is_told_of_a_loss_or_an_operation_that_is_not_there_is_named() -> None:
    by_mse = {"evaluation": {"soft_loss": "mse", "augmentation": "color"}}
    for told in ({"temperature": 4.0}, {"temperature_squared": True}):
        with pytest.raises(ValueError, match="temperature: expected it with soft_loss kl, got"):
            recipe_of(by_mse, taught={}, **told)
    with pytest.raises(
        ValueError, match=r"zoom: expected it with the operation zoom, got .* color"
    ):
        recipe_of(by_mse, taught={}, zoom=0.5)
    assert recipe_of(by_mse, taught={}, zoom=0.5, augmentation="all:zoom_flip").zoom == 0.5


def test_hard_labels_are_not_trained_on_by_what_is_said_of_soft_ones() -> None:
    plain = recipe_of({"evaluation": OF_SRE2L})
    assert plain == replace(PUBLISHED_RECIPE, epochs=100, optimizer="sgd", lr=0.2)


def test_a_recipe_comes_back_from_its_record() -> None:
    for recipe in (*RECIPES.values(), STUDENT_RECIPE, replace(STUDENT_RECIPE, zoom=0.5)):
        assert Recipe.of_record(recipe.as_record()) == recipe
    assert "soft_loss" not in PUBLISHED_RECIPE.as_record()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 4.0}, "temperature: expected labels or a teacher with it"),
        ({"ce_weight": 0.1}, "ce_weight: expected labels or a teacher with it"),
        ({"labels": "l", "teacher": ("t",)}, "labels, teacher: expected one of them, got both"),
        ({"labels": "l", "sets": ("a", "b")}, "labels: expected the one set that they are of"),
        ({"labels": "l", "random_real": 2}, "labels: expected the one set that they are of"),
        ({"teacher": ("t",), "ddranking": True}, "ddranking: expected it without labels and"),
        ({"teacher": ("t",), "soft_loss": "mse", "temperature": 2.0}, "temperature: expected it"),
        ({"zoom": 1.5}, "zoom: expected a share of the area up to 1, got 1.5"),
    ],
)
def test_options_that_contradict_each_other_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateOptions(**{"sets": ("a",), **given}).check()
