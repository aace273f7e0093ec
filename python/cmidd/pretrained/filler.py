"""The training that fills a file of networks, group by group.

Groups are the same after a kill. A group that a signal stops is kept beside the file
(`training_file.py`). Ranks take groups in turn, and all of them write into the one file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images, StreamedImages
from cmidd.device import precision_on
from cmidd.interruption import Stop, deferred
from cmidd.options.recipe import Recipe
from cmidd.progress import progress
from cmidd.stack import Stack, networks_together
from cmidd.storage.growing_file import GrowingFile
from cmidd.training import Objective, Progress, cross_entropy
from cmidd.training_file import TrainingFile, about_training, train_or_go_on, training_path


class Tuning(Protocol):
    """Networks that begin with the weights of others, one at a time, and what they minimise."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What tells it from others, as JSON gives it back."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What the objective depends on beside the network; kept with training that is stopped."""

    def first_state(self, number: int) -> dict[str, Tensor]:
        """The state that network `number` begins with."""

    def prepare(self, stack: Stack, images: Images, labels: Tensor, seed: int) -> None:
        """Make the objective's state, of a network that begins."""

    def objective(self, stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        """What is minimised."""

    def judge(self, stack: Stack, number: int) -> tuple[float, str]:
        """The accuracy of network `number`, and in words what else became of it."""


@dataclass(frozen=True)
class TrainingTask:
    """Which networks are trained, and how."""

    name: str  # of one of them, for messages
    spec: str
    recipe: Recipe
    seeds: Sequence[int]  # of each
    together: int | None  # networks at once; None: as suits the device
    objective: Objective = cross_entropy
    tuning: Tuning | None = None  # in the place of fresh weights and of the objective

    def stack(self, group: range, dataset: Dataset, device: torch.device) -> Stack:
        """The networks of these numbers, as they begin."""
        spec, precision = self.spec, precision_on(device, self.recipe.precision)
        if self.tuning is None:
            seeds = [self.seeds[k] for k in group]
            return Stack.fresh(spec, dataset.shape, dataset.num_classes, seeds, device, precision)
        states = [
            {name: tensor.to(device) for name, tensor in self.tuning.first_state(k).items()}
            for k in group
        ]
        return Stack(spec, dataset.shape, dataset.num_classes, states, precision)


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
    missing, count, recipe = set(ranks.from_first(growing.missing)), len(task.seeds), task.recipe
    tuning = task.tuning
    size = networks_together(task.spec, device, task.together)
    groups = [range(first, min(first + size, count)) for first in range(0, count, size)]
    for group in groups:
        if ranks.is_first() and not missing & set(group):  # left by a kill after the last `put`
            training_path(growing.complete_path, group.start + 1).unlink(missing_ok=True)
    if len(missing) < count:
        say(f"{count - len(missing)} of {count} {task.name}s are there already")
    if not missing:
        return
    images = dataset.inputs(dataset.train.source.to(device))
    labels = dataset.train.labels.to(device)
    strategy = Strategy.parse(recipe.augmentation, mirror=dataset.mirror)
    groups = [group for group in groups if missing & set(group)]
    groups = groups[ranks.number() :: ranks.count()]
    epochs = sum(len(missing & set(group)) for group in groups) * recipe.epochs
    said: list[str] = []
    with (
        deferred() as stop,
        progress(total=epochs, desc=f"training {task.name}s", unit="epoch") as bar,
    ):
        for group in groups:
            wanted = missing & set(group)
            seeds = [task.seeds[k] for k in group]
            stack = task.stack(group, dataset, device)
            about = about_training(seeds, task.spec, recipe, dataset.describe())
            where = training_path(growing.complete_path, group.start + 1)
            if tuning is None:
                kept = TrainingFile(where, about)
            else:
                kept = TrainingFile(where, {**about, "tuning": tuning.about}, tuning.state)
            if not all(growing.is_begun(k) for k in wanted):
                kept.discard()  # its epochs went into a file that is gone

            def begin(
                done: Progress | None,
                stack: Stack = stack,
                group: range = group,
                wanted: set[int] = wanted,
                seeds: Sequence[int] = seeds,
            ) -> None:
                if done is not None:
                    say(f"{_words(task.name, group, count)}: going on in epoch {done.epoch + 1}")
                    bar.update(done.epoch * len(wanted))
                    return
                if tuning is not None:
                    tuning.prepare(stack, images, labels, seeds[0])
                if after_epoch is not None:
                    after_epoch(stack, group, wanted, 0)

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
                bar.set_postfix({task.name: f"{group[-1] + 1}/{count}", "loss": f"{loss:.3f}"})

            train_or_go_on(
                stack,
                images,
                labels,
                recipe,
                strategy,
                seeds,
                kept=kept,
                stop=stop,
                what=_words(task.name, group, count),
                objective=task.objective if tuning is None else tuning.objective,
                at_start=begin,
                on_epoch=advance,
            )
            # torchrun gives a rank half a minute to end, and a picture may be one that is broken.
            if ranks.count() > 1 or isinstance(dataset.test.source, StreamedImages):
                kept.save(stack, Progress(recipe.epochs))
            if tuning is None:
                accuracies = stack.accuracy(dataset.batches(dataset.test, device))
                judged = [(accuracy, "") for accuracy in accuracies]
            else:
                judged = [tuning.judge(stack, k) for k in group]
            for place, k in enumerate(group):
                if k in wanted:
                    accuracy, words = torch.tensor(judged[place][0]), judged[place][1]
                    line = (
                        f"{task.name} {k + 1} of {count}: {accuracy:.1%} of {dataset.judges} right"
                        f"{words}"
                    )
                    growing.put(k, {**at_the_end(stack, place, k), "accuracy": accuracy})
                    said.append(line)
                    say(line)
            kept.discard()
            _end_if_asked(stop, task.name, len(growing.missing()), count)
    for line in [line for of_rank in ranks.from_all(said)[1:] for line in of_rank]:
        say(line)  # of the others, once all are here


def _words(name: str, group: range, count: int) -> str:
    if len(group) == 1:
        return f"{name} {group[0] + 1} of {count}"
    return f"{name}s {group[0] + 1} to {group[-1] + 1} of {count}"


def _end_if_asked(stop: Stop, name: str, missing: int, count: int) -> None:
    """What a signal during the test of a group leads to."""
    if stop.asked and missing:
        raise stop.interruption(f"interrupted after {count - missing} of {count} {name}s")
