from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cmidd.datasets.streamed import StreamedImages
from cmidd.options.recipe import Recipe
from cmidd.storage.optimizer_state import named, state_of
from cmidd.training import cross_entropy
from tests.support.replaying import Replayed, both, replayed
from tests.support.tiny import CPU
from tests.support.trained import (
    DATASET,
    PIXELS,
    PLAIN,
    RECIPES,
    Trained,
    same,
)


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


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("stop_after", [-1, 5, 11])
def test_captured_steps_are_those_of_plain_training(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, stop_after: int
) -> None:
    """Up to the rounding of the fused optimizer; one goes on with what the other began."""

    def run(first: str, second: str) -> Trained:
        monkeypatch.setenv("CMIDD_CUDA_GRAPHS", first)
        one = Trained(recipe)
        done = one.run(stop_after=stop_after)
        if done is None:
            return one
        monkeypatch.setenv("CMIDD_CUDA_GRAPHS", second)
        other = Trained(recipe)
        other.take_weights_of(one)
        kept = [named(state, str(k)) for k, state in enumerate(done.optimizer)]
        states = [state_of(each, str(k), CPU) for k, each in enumerate(kept)]
        assert other.run(done=replace(done, optimizer=states)) is None
        return other

    plain = run("0", "0")
    graphs = replayed(monkeypatch)
    for first, second in (("1", "0"), ("0", "1"), ("1", "1")):
        found = run(first, second)
        for name, tensor in found.stack.state.items():
            torch.testing.assert_close(tensor, plain.stack.state[name], rtol=1e-4, atol=1e-5)
    assert graphs.replays > 0


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
    other.take_weights_of(one)
    kept = [{name: each.clone() for name, each in state.items()} for state in done.optimizer]
    assert other.run(done=replace(done, optimizer=kept)) is None
    assert graphs.replays > 0
    assert same(other.stack, whole.stack)
    assert one.losses[: done.epoch] + other.losses == whole.losses


def test_pixels_that_are_in_memory_are_normalised_in_the_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> Trained:
        each = Trained(PLAIN)
        each.run(StreamedImages.of_pixels(PIXELS).seen_by(DATASET.to_input))
        return each

    expected, found, graphs = both(monkeypatch, run)
    whole = Trained(PLAIN)
    whole.run()
    assert graphs.replays > 0
    assert same(found.stack, expected.stack)
    assert same(found.stack, whole.stack)


def test_an_objective_that_says_so_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> Trained:
        twice = {"objective": lambda *given: 2 * cross_entropy(*given), "repeats": True}
        each = Trained(PLAIN, how=twice)
        each.run()
        return each

    expected, found, graphs = both(monkeypatch, run)
    assert graphs.replays > 0
    assert same(found.stack, expected.stack)
