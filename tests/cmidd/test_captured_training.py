from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from cmidd.augment import Strategy
from cmidd.captured import CALLS_BEFORE, GRAPHS
from cmidd.datasets.streamed import Images, Pixels, StreamedImages
from cmidd.methods import Method
from cmidd.methods.dc import GradientMatching
from cmidd.methods.idc import IDC
from cmidd.methods.idm import IDM
from cmidd.options.dc import DCOptions
from cmidd.options.dsa import DSAOptions
from cmidd.options.idc import IDCOptions
from cmidd.options.idm import IDMOptions
from cmidd.options.recipe import Recipe
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmidd.training import Progress, Training, cross_entropy
from cmidd.training_draws import draw_epochs
from tests.support.replaying import DoneAgain, Replayed, replayed
from tests.support.steps import step
from tests.support.tiny import CPU, NETWORK, tiny_dataset

DATASET = tiny_dataset()
PIXELS, LABELS = DATASET.train.images, DATASET.train.labels
IMAGES = DATASET.to_input(PIXELS)
SHAPE = DATASET.shape

T = TypeVar("T")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    return replayed(monkeypatch)


PLAIN = Recipe(epochs=8, lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=5, drop_at=1.0)
RECIPES = {
    "plain": PLAIN,
    "momentum, weight decay and a lower rate": replace(
        PLAIN, momentum=0.9, weight_decay=0.1, drop_at=0.5
    ),
    "a rate for every epoch": replace(PLAIN, momentum=0.9, schedule="cosine", warm_up=2),
    "adamw": replace(PLAIN, lr=0.01, weight_decay=0.1, drop_at=0.5, optimizer="adamw"),
    "one batch": replace(PLAIN, batch_size=256, momentum=0.9),
    "augmented": replace(PLAIN, momentum=0.9, augmentation="color_flip"),
    "mixed": replace(PLAIN, momentum=0.9, cutmix=0.5),
}


@dataclass
class Trained:
    """A training of the tiny images, and what it told."""

    recipe: Recipe
    seeds: list[int] = field(default_factory=lambda: [3])
    spec: str = NETWORK
    how: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stack = Stack.fresh(self.spec, SHAPE, 3, self.seeds, CPU)
        self.strategy = Strategy.parse(self.recipe.augmentation)
        self.training = Training(self.stack, self.recipe, self.strategy, **self.how)

    def run(
        self, images: Images = IMAGES, done: Progress | None = None, stop_after: int = -1
    ) -> Progress | None:
        count = iter(range(1, 10**6))
        first = 0 if done is None else done.epoch
        epochs = draw_epochs(self.seeds, len(images), self.recipe, self.strategy, first)
        return self.training(
            images,
            LABELS,
            epochs,
            done=done,
            on_epoch=lambda _, loss: self.losses.append(loss),
            stopping=lambda: next(count) == stop_after,
        )


def same(one: Stack, other: Stack) -> bool:
    return all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def both(monkeypatch: pytest.MonkeyPatch, run: Callable[[], T]) -> tuple[T, T, type[Replayed]]:
    """A run whose steps are done again by Python, and one by graphs."""
    monkeypatch.setitem(GRAPHS, "cpu", DoneAgain)
    expected = run()
    graphs = replayed(monkeypatch)
    return expected, run(), graphs


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("seeds", [[3], [3, 4, 5]], ids=["one", "three"])
def test_captured_steps_give_the_bits_of_steps(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, seeds: list[int]
) -> None:
    def run() -> Trained:
        each = Trained(recipe, seeds)
        assert each.run() is None
        return each

    expected, found, graphs = both(monkeypatch, run)
    assert graphs.captures >= 1
    assert graphs.replays >= 5
    assert same(found.stack, expected.stack)
    assert found.losses == expected.losses
    assert len(found.losses) == recipe.epochs


def test_networks_see_of_images_what_they_see_without_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> Trained:
        each = Trained(PLAIN, how={"seen": DATASET.to_input})
        assert each.run(PIXELS) is None
        return each

    expected, found, graphs = both(monkeypatch, run)
    assert graphs.replays > 0
    assert same(found.stack, expected.stack)
    whole = Trained(PLAIN)
    whole.run()
    assert same(whole.stack, expected.stack)


@pytest.mark.parametrize("recipe", ["momentum, weight decay and a lower rate", "adamw"])
@pytest.mark.parametrize("stop_after", [2, 11, 12, 17])
def test_training_that_is_stopped_goes_on_to_the_bit(
    graphs: type[Replayed], recipe: str, stop_after: int
) -> None:
    whole = Trained(RECIPES[recipe])
    whole.run()
    one, other = Trained(RECIPES[recipe]), Trained(RECIPES[recipe])
    done = one.run(stop_after=stop_after)
    assert done is not None
    for name, tensor in one.stack.state.items():
        other.stack.state[name].data.copy_(tensor)
    kept = [{name: each.clone() for name, each in state.items()} for state in done.optimizer]
    assert other.run(done=replace(done, optimizer=kept)) is None
    assert graphs.replays > 0
    assert same(other.stack, whole.stack)
    assert one.losses[: done.epoch] + other.losses == whole.losses


def test_a_second_call_begins_without_momentum_and_needs_no_graph_of_its_own(
    graphs: type[Replayed],
) -> None:
    recipe = RECIPES["one batch"]
    again, afresh = Trained(recipe), Trained(recipe)
    again.run()
    assert graphs.captures == 1
    for name, tensor in again.stack.state.items():
        afresh.stack.state[name].data.copy_(tensor)
    again.run()
    assert graphs.captures == 1
    assert graphs.replays == 2 * recipe.epochs - CALLS_BEFORE
    afresh.run()
    assert same(again.stack, afresh.stack)


def test_images_that_change_where_they_are_are_seen_and_others_have_graphs_of_their_own(
    graphs: type[Replayed],
) -> None:
    images, recipe = IMAGES.clone(), RECIPES["one batch"]
    again, afresh = Trained(recipe), Trained(recipe)
    for k in range(3):
        images.mul_(0.9)
        others = images.clone()
        again.run(images)
        afresh.run(others)
        assert graphs.captures == 1 + (k + 1)  # one for `images`, and one for each of `others`
        assert same(again.stack, afresh.stack)


ELSEWHERE: dict[str, dict[str, Any]] = {
    "an objective of one's own": {"objective": lambda *given: cross_entropy(*given)},
    "ranks": {"shared": True},
    "a teacher": {"teach": lambda *given: given[3]},
}


@pytest.mark.parametrize("how", ELSEWHERE.values(), ids=ELSEWHERE)
def test_steps_that_ask_the_cpu_are_not_captured(
    graphs: type[Replayed], how: dict[str, Any]
) -> None:
    Trained(PLAIN, how=how).run()
    assert graphs.captures == 0


def test_neither_are_those_on_images_that_are_made_batch_by_batch(graphs: type[Replayed]) -> None:
    made = StreamedImages.of(Pixels(PIXELS, PIXELS.nbytes), len(PIXELS))
    Trained(PLAIN, how={"seen": DATASET.to_input}).run(made)
    assert graphs.captures == 0


def test_nothing_is_captured_where_the_environment_says_so(
    graphs: type[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMIDD_CUDA_GRAPHS", "0")
    Trained(PLAIN).run()
    assert graphs.captures == 0


def test_an_objective_that_says_so_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Trained:
        twice = {"objective": lambda *given: 2 * cross_entropy(*given), "repeats": True}
        each = Trained(PLAIN, how=twice)
        each.run()
        return each

    expected, found, graphs = both(monkeypatch, run)
    assert graphs.replays > 0
    assert same(found.stack, expected.stack)


def test_where_there_are_no_graphs_the_optimizer_is_torchs_usual_one() -> None:
    (group,) = Trained(RECIPES["adamw"]).training.optimizer.param_groups
    assert isinstance(group["lr"], float)
    assert not group["fused"]


REAL = random_dataset((7, 12, 5), 8)
SYNTHETIC = torch.arange(3).repeat_interleave(2)
CONVNET = "convnet:depth=2,width=4"
OF_DC: dict[str, Any] = {
    "batch_real": 4, "outer_steps": 3, "inner_epochs": 6, "lr_net": 0.1, "batch_net": 4
}  # fmt: skip
OF_CELLS: dict[str, Any] = {"factor": 2, "batch_real": 4, "batch_net": 10, "lr_net": 0.1}
METHODS: dict[str, Callable[[], Method]] = {
    "dc": lambda: GradientMatching(REAL, SYNTHETIC, DCOptions(CONVNET, **OF_DC), 3, CPU),
    "dsa": lambda: GradientMatching(
        REAL, SYNTHETIC, DSAOptions(CONVNET, augmentation="color_flip", **OF_DC), 3, CPU
    ),
    "idc": lambda: IDC(
        REAL,
        SYNTHETIC,
        IDCOptions(
            CONVNET, metric="mse", inner_steps=3, images_net=20, cutmix_net=0.5,
            augmentation="none", **OF_CELLS,
        ),
        3,
        CPU,
    ),
    "idm": lambda: IDM(
        REAL,
        SYNTHETIC,
        IDMOptions(
            CONVNET, accuracy_weight=0.02, queue_size=3, push_interval=2, steps_net=4,
            networks_trained=2, **OF_CELLS,
        ),
        3,
        CPU,
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_whose_networks_train_by_graphs_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, method: Callable[[], Method]
) -> None:
    def run() -> list[Tensor]:
        matching, found = method(), []
        images = torch.randn(6, 3, 8, 8, generator=generator("synthetic"))
        for iteration in range(3):
            for update in range(matching.updates):
                loss, gradient = step(matching, images, iteration, update)
                images -= 0.1 * gradient
                found += [loss, gradient]
        return found

    expected, found, graphs = both(monkeypatch, run)
    assert graphs.replays > graphs.captures >= 1
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


def test_a_state_of_the_optimizer_that_lies_elsewhere_is_followed(graphs: type[Replayed]) -> None:
    recipe = RECIPES["one batch"]
    again, afresh = Trained(recipe), Trained(recipe)
    again.run()
    for name, tensor in again.stack.state.items():
        afresh.stack.state[name].data.copy_(tensor)
    states = [
        [{"momentum_buffer": torch.full_like(each, 0.01)} for each in run.stack.parameters]
        for run in (again, afresh)
    ]
    again.run(done=Progress(optimizer=states[0]))
    afresh.run(done=Progress(optimizer=states[1]))
    assert graphs.captures == 3
    assert same(again.stack, afresh.stack)
    for one, other in zip(*states, strict=True):  # changed in place
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
