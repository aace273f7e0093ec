"""The training that fills a file of networks, group by group.

Groups are the same after a kill: what is trained together is rounded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.options.recipe import Recipe
from cmidd.storage.growing_file import GrowingFile
from cmidd.training import Objective, Stack, cross_entropy, draw_epochs, networks_together, train


@dataclass(frozen=True)
class TrainingTask:
    """Which networks are trained, and how."""

    name: str  # of one of them, for messages
    spec: str
    recipe: Recipe
    seeds: Sequence[int]  # of each
    together: int | None  # networks at once; None: as suits the device
    objective: Objective = cross_entropy


AfterEpoch = Callable[[Stack, range, set[int], int], None]
"""Of the networks of a group, its numbers, those of them that the file lacks, and the epoch."""


def fill(
    growing: GrowingFile,
    task: TrainingTask,
    dataset: Dataset,
    device: torch.device,
    *,
    at_the_end: Callable[[Stack, int, int], dict[str, Tensor]],
    after_epoch: AfterEpoch | None = None,
    say: Callable[[str], None],
) -> None:
    """Train the networks that the file lacks, and put each into it when it is done.

    Args:
        growing: the file.
        task: the networks.
        dataset: whose training images they learn from.
        device: where.
        at_the_end: tensors that a network still lacks in the file, by stack, place in the stack and
            number; its accuracy is added to them.
        after_epoch: called before the first epoch, number 0, and after each.
        say: told each network's accuracy.
    """
    missing, count, recipe = set(growing.missing()), len(task.seeds), task.recipe
    if not missing:
        return
    images = dataset.to_input(dataset.train.images.to(device))
    labels = dataset.train.labels.to(device)
    strategy = Strategy.parse(recipe.augmentation, mirror=dataset.mirror)
    size = networks_together(task.spec, device, task.together)
    epochs = len(missing) * recipe.epochs
    with tqdm(total=epochs, desc=f"training {task.name}s", unit="epoch") as bar:
        for first in range(0, count, size):
            group = range(first, min(first + size, count))
            wanted = missing & set(group)
            if not wanted:
                continue
            seeds = [task.seeds[k] for k in group]
            stack = Stack.fresh(task.spec, dataset.shape, dataset.num_classes, seeds, device)

            def advance(
                epoch: int,
                loss: float,
                stack: Stack = stack,
                group: range = group,
                wanted: set[int] = wanted,
            ) -> None:
                if after_epoch is not None:
                    after_epoch(stack, group, wanted, epoch)
                bar.update(len(wanted))
                progress = {task.name: f"{group[-1] + 1}/{count}", "loss": f"{loss:.3f}"}
                bar.set_postfix(progress)

            if after_epoch is not None:
                after_epoch(stack, group, wanted, 0)
            drawn = draw_epochs(seeds, len(images), recipe, strategy)
            train(
                stack,
                images,
                labels,
                recipe,
                strategy,
                drawn,
                objective=task.objective,
                on_epoch=advance,
            )
            accuracies = stack.accuracy(dataset.batches(dataset.test, device))
            for place, k in enumerate(group):
                if k in wanted:
                    accuracy = torch.tensor(accuracies[place])
                    growing.put(k, {**at_the_end(stack, place, k), "accuracy": accuracy})
                    say(f"{task.name} {k + 1} of {count}: {accuracy:.1%} of test images right")
