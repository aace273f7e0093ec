"""Steps of methods and training of networks, with what they draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cmidd.augment import Strategy
from cmidd.methods import Method
from cmidd.options.recipe import Recipe
from cmidd.training import Stack, train
from cmidd.training_draws import draw_epochs


def step(method: Method, images: Tensor, iteration: int, update: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and gradient of an update."""
    return method.loss_and_gradient(images, method.draw(iteration, update))


def run(
    stack: Stack,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    mirror: bool = True,
    **more: Any,
) -> None:
    """Train the stack as its seeds draw."""
    strategy = Strategy.parse(recipe.augmentation, mirror=mirror)
    epochs = draw_epochs(seeds, len(images), recipe, strategy)
    train(stack, images, labels, recipe, strategy, epochs, **more)
