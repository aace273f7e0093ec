"""Training that stops and goes on from its file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from cmidd.augment import Strategy
from cmidd.options.recipe import Recipe
from cmidd.stack import Stack
from cmidd.storage.tensor_file import read_tensors
from cmidd.training import Progress, train
from cmidd.training_draws import draw_epochs
from cmidd.training_file import KIND, TrainingFile
from tests.support.tiny import CPU, NETWORK, tiny_dataset

DATASET = tiny_dataset()
IMAGES, LABELS = DATASET.to_input(DATASET.train.images), DATASET.train.labels
KEPT = {"sgd": {"momentum"}, "adamw": {"exp_avg", "exp_avg_sq", "step"}}


@pytest.mark.parametrize("optimizer", KEPT)
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_training_goes_on_to_the_same_bits(
    tmp_path: Path, together: int, at: int, optimizer: str
) -> None:
    seeds, strategy = list(range(together)), Strategy.parse("none")
    recipe = Recipe(3, batch_size=5, weight_decay=0.1, drop_at=(0.3, 0.6), optimizer=optimizer)

    def train_until(stack: Stack, done: Progress | None, stop: int | None) -> Progress | None:
        steps = itertools.count(1)
        epochs = draw_epochs(seeds, len(IMAGES), recipe, strategy, done.epoch if done else 0)
        return train(stack, IMAGES, LABELS, recipe, strategy, epochs, done=done,
                     stopping=lambda: next(steps) == stop)  # fmt: skip

    whole, cut, again = (Stack.fresh(NETWORK, DATASET.shape, 3, seeds, CPU) for _ in range(3))
    assert train_until(whole, None, None) is None
    came_to = train_until(cut, None, at)
    assert came_to is not None
    TrainingFile(tmp_path / "file", {}).save(cut, came_to)
    words = {name.partition(" of ")[0] for name in read_tensors(tmp_path / "file", KIND)[0]}
    assert words == {"state"} | KEPT[optimizer]
    done = TrainingFile(tmp_path / "file", {}).restore(again)
    assert train_until(again, done, None) is None
    assert all(torch.equal(again.state[name], whole.state[name]) for name in whole.state)
