"""Training of the tiny images, for tests of steps that are captured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cmidd.augment import Strategy
from cmidd.datasets.streamed import Images
from cmidd.options.recipe import Recipe
from cmidd.stack import Stack
from cmidd.training import Progress, Training
from cmidd.training_draws import draw_epochs
from tests.support.tiny import CPU, NETWORK, tiny_dataset

DATASET = tiny_dataset()
PIXELS, LABELS = DATASET.train.images, DATASET.train.labels
IMAGES = DATASET.to_input(PIXELS)
SHAPE = DATASET.shape


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

    def take_weights_of(self, other: Trained) -> None:
        for name, tensor in other.stack.state.items():
            self.stack.state[name].data.copy_(tensor)

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
