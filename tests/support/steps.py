"""Steps of methods and training of networks, with what they draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cmidd.augment import Strategy
from cmidd.methods import Method
from cmidd.methods.class_matching import ClassMatching
from cmidd.options.recipe import Recipe
from cmidd.stack import Stack
from cmidd.training import train
from cmidd.training_draws import draw_epochs


def step(method: Method, images: Tensor, iteration: int, update: int = 0) -> tuple[Tensor, Tensor]:
    """Loss and gradient of an update."""
    return method.loss_and_gradient(images, method.draw(iteration, update))


def check_network_trains_between_updates(loop: ClassMatching, images: Tensor) -> None:
    """Each update but the first of an iteration sees another network, and a new one begins anew."""
    weights = []
    for update in range(3):
        step(loop, images, 0, update)
        weights.append(loop.stack.state["head.weight"].detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    step(loop, images, 0, 0)
    assert torch.equal(loop.stack.state["head.weight"], weights[0])


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
