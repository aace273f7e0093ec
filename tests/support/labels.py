"""Teachers, the labels that they give a tiny set, and networks that learn them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmidd.augment import Strategy
from cmidd.first_images import first_images
from cmidd.label_file import SoftLabels
from cmidd.networks import Network, build_network, freeze, initialize
from cmidd.options.recipe import recipe_of
from cmidd.options.relabel import RelabelOptions
from cmidd.relabelling import Relabelling, relabel
from cmidd.seeds import generator
from cmidd.stack import Stack
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import objective_of
from cmidd.training import Progress, train
from cmidd.training_draws import draw_epochs
from tests.support.tiny import CPU, NETWORK, quiet, tiny_dataset

DATASET = tiny_dataset()
SET = SyntheticSet.of(DATASET, *first_images(DATASET, 3, "real", 0))
OPTIONS = RelabelOptions(epochs=3, batch_size=4, seed=7)
LONGEST = 3  # steps of an epoch


def a_teacher(seed: int, dtype: torch.dtype = torch.float64) -> Network:
    network = build_network(NETWORK, 1, 8, 3)
    initialize(network, generator("teacher", seed))
    network.head.weight.data *= 20  # else its logits are all alike
    return freeze(network.to(dtype))


class Recorded(nn.Module):
    """A teacher that notes what it sees, and whose logits float16 holds exactly."""

    def __init__(self, after: Callable[[int], object] = lambda _: None) -> None:
        super().__init__()
        self.network, self.after = a_teacher(0, dtype=torch.float32), after
        self.saw: list[Tensor] = []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.saw.append(images.clone())
        self.after(len(self.saw))
        logits: Tensor = self.network(images).half().float()
        return logits


def work(options: RelabelOptions = OPTIONS, *teachers: nn.Module) -> Relabelling:
    return Relabelling(SET, DATASET, teachers or [Recorded()], options, CPU)


def labelled(path: Path, *teachers: nn.Module, resume: bool = False, **changes: Any) -> SoftLabels:
    made = work(replace(OPTIONS, **changes), *teachers)
    return relabel(path, made, resume=resume, say=quiet)


def trained(
    labels: SoftLabels, teacher: Any, stack: Stack, done: Progress | None = None, stop: int = 0
) -> Progress | None:
    """A stack that learns from a teacher what the images of `labels` are."""
    recipe = recipe_of({}, taught=labels.draws)
    strategy = Strategy.parse(recipe.augmentation)
    first = done.epoch if done else 0
    epochs = draw_epochs([labels.seed or 0] * stack.size, len(SET.labels), recipe, strategy, first)
    steps = iter(range(1, 100))
    return train(stack, SET.images, SET.labels, recipe, strategy, epochs, done=done, teach=teacher,
                 objective=objective_of(recipe), stopping=lambda: next(steps) == stop)  # fmt: skip


def fresh(*seeds: int) -> Stack:
    return Stack.fresh(NETWORK, DATASET.shape, 3, seeds or (1,), CPU)


def same(one: Stack, other: Stack, tolerance: float = 0.0) -> bool:
    pairs = [(one.state[name].detach(), other.state[name].detach()) for name in one.state]
    return all((a - b).abs().max().item() <= tolerance for a, b in pairs)


def dies(work: Callable[[], object]) -> None:
    """Do what kills the process, in one of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
