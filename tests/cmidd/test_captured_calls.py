from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from cmidd.augment import Strategy
from cmidd.captured import CALLS_BEFORE
from cmidd.datasets.streamed import Pixels, StreamedImages
from cmidd.stack import Stack
from cmidd.training import Progress, cross_entropy, train
from cmidd.training_draws import draw_epochs
from tests.support.replaying import Replayed
from tests.support.tiny import CPU, NETWORK
from tests.support.trained import (
    DATASET,
    IMAGES,
    LABELS,
    PIXELS,
    PLAIN,
    RECIPES,
    SHAPE,
    Trained,
    same,
)


def test_a_second_call_begins_without_momentum_and_needs_no_graph_of_its_own(
    graphs: type[Replayed],
) -> None:
    recipe = RECIPES["one batch"]
    again, afresh = Trained(recipe), Trained(recipe)
    again.run()
    assert graphs.captures == 1
    afresh.take_weights_of(again)
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


def test_where_there_are_no_graphs_the_optimizer_is_torchs_usual_one() -> None:
    (group,) = Trained(RECIPES["adamw"]).training.optimizer.param_groups
    assert isinstance(group["lr"], float)
    assert not group["fused"]


def test_float64_is_not_captured(graphs: type[Replayed]) -> None:
    states = [
        {name: tensor.double() for name, tensor in state.items()}
        for state in Stack.fresh(NETWORK, SHAPE, 3, [3], CPU).states()
    ]
    stack, strategy = Stack(NETWORK, SHAPE, 3, states), Strategy.parse("none")
    drawn = draw_epochs([3], len(IMAGES), PLAIN, strategy)
    train(stack, IMAGES.double(), LABELS, PLAIN, strategy, drawn)
    assert graphs.captures == 0


def test_nothing_of_a_training_is_left_after_it(graphs: type[Replayed]) -> None:
    gc.collect()
    gc.disable()
    try:
        each = Trained(PLAIN)
        each.run()
        gone = weakref.ref(each.training)
        assert graphs.captures
        del each
        assert gone() is None
    finally:
        gc.enable()


def test_the_callers_state_of_the_optimizer_is_left_to_the_caller(graphs: type[Replayed]) -> None:
    recipe = RECIPES["one batch"]
    each, afresh = Trained(recipe), Trained(recipe)
    state = [{"momentum_buffer": torch.full_like(p, 0.01)} for p in each.stack.parameters]
    each.run(done=Progress(optimizer=state))
    kept = [tensor.clone() for of_one in state for tensor in of_one.values()]
    afresh.take_weights_of(each)
    each.run()
    afresh.run()
    assert same(each.stack, afresh.stack)
    assert all(
        torch.equal(tensor, before)
        for of_one, before in zip(state, kept, strict=True)
        for tensor in of_one.values()
    )
    assert graphs.captures == 3


def test_a_state_of_the_optimizer_that_lies_elsewhere_is_followed(graphs: type[Replayed]) -> None:
    recipe = RECIPES["one batch"]
    again, afresh = Trained(recipe), Trained(recipe)
    again.run()
    afresh.take_weights_of(again)
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
