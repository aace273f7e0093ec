"""What training costs in time and memory, measured on a few of its own steps before it starts.

The first step pays for what is made once and is not counted. Nothing is written, and the networks
that are tried are thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from cmidd.augment import Strategy
from cmidd.captured import CALLS_BEFORE
from cmidd.cli.costs import duration, peak
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.networks import build_network
from cmidd.networks.usual import bank_network, gradient_network
from cmidd.options.pretrained import BankOptions, ExpertOptions
from cmidd.options.recipe import Recipe
from cmidd.pretrained.experts import parameter_count
from cmidd.relabelling import Relabelling
from cmidd.stack import Stack, networks_together
from cmidd.storage.output import in_words
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import Teacher, objective_of
from cmidd.training import Training
from cmidd.training_draws import draw_epochs

_TRIED = 3  # steps that are counted
_ENTRY, _ACCURACY = 400, 30  # bytes of an evaluation's file for an architecture and a network
_LONG = 2.0  # seconds of them after which no further one is tried


@dataclass(frozen=True)
class TrainingCost:
    """Time of networks of one architecture, and the memory that they take."""

    spec: str
    networks: int
    steps: int  # of each network, or of all that are trained together
    step: float  # seconds
    seconds: float  # in all
    memory: int  # bytes at the peak: of the process, or on the GPU

    def times(self, count: int) -> TrainingCost:
        """The cost of training as many networks again and again."""
        return replace(self, networks=count * self.networks, seconds=count * self.seconds)

    def __str__(self) -> str:
        return (
            f"{self.networks} x {self.spec}: about {duration(self.step)} a step, "
            f"{duration(self.seconds)} for {self.steps:,} steps of each"
        )


def cost_of_bank(dataset: Dataset, options: BankOptions, device: torch.device) -> str:
    """In words, what `train_bank` costs; of MCMI without its divergence and its passes."""
    spec = options.network or bank_network(dataset.name, dataset.shape.height)
    cost = _estimate_on_real(spec, dataset, options, options.networks, device)
    state = build_network(spec, *dataset.shape[:2], dataset.num_classes).state_dict()
    return _told([cost], options.networks * sum(tensor.nbytes for tensor in state.values()))


def cost_of_experts(dataset: Dataset, options: ExpertOptions, device: torch.device) -> str:
    """In words, what `train_experts` costs."""
    spec = options.network or gradient_network(dataset.shape.height)
    size = parameter_count(spec, dataset.shape, dataset.num_classes)
    cost = _estimate_on_real(spec, dataset, options, options.experts, device)
    return _told([cost], options.experts * (options.epochs + 1) * size * 4)


def cost_of_evaluation(
    sets: Iterable[Evaluated], together: int | None, device: torch.device
) -> str:
    """In words, what it costs to evaluate sets."""
    names, costs, disk = [], [], 0
    for each in sets:
        for spec in each.networks:
            cost = estimate_training(
                spec,
                each.synthetic_set.source.to(device),
                each.synthetic_set.targets.to(device),
                each.judge,
                each.recipe,
                each.repeats,
                together,
                each.teacher,
            )
            names.append(each.name)
            costs.append(cost.times(each.rates))
            disk += each.rates * (_ENTRY + each.repeats * _ACCURACY)
    return _told(costs, disk, names)


def cost_of_labels(work: Relabelling, command: str) -> str:
    """In words, what it costs to `relabel` by a command."""
    device = work.images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    epochs, began = work.recipe.epochs, time.perf_counter()
    drawn = [work.draw(epoch) for epoch in range(min(epochs, _epochs_tried(work.steps)))]
    draw = (time.perf_counter() - began) / len(drawn)
    clock = _Clock(device)
    for _ in chain.from_iterable(work.labels_of(*each) for each in enumerate(drawn)):
        if clock():
            break
    step = clock.step()
    seconds = epochs * (draw + work.steps * step)
    return (
        f"about {duration(step)} a step, {duration(seconds)} for {epochs * work.steps:,} steps in "
        f"{epochs:,} epochs; memory {in_words(peak(device))}, disk {in_words(work.size(command))}"
    )


def _estimate_on_real(
    spec: str,
    dataset: Dataset,
    options: BankOptions | ExpertOptions,
    networks: int,
    device: torch.device,
) -> TrainingCost:
    images = dataset.inputs(dataset.train.source.to(device))
    labels = dataset.train.labels.to(device)
    recipe = options.recipe()
    return estimate_training(spec, images, labels, dataset, recipe, networks, options.together)


def _told(costs: Sequence[TrainingCost], disk: int, names: Sequence[str] = ()) -> str:
    starts = [f"{name}: " for name in names] or [""]
    lines = [f"{start}{cost}" for start, cost in zip(starts, costs, strict=True)]
    whole = duration(sum(cost.seconds for cost in costs))
    memory = in_words(max(cost.memory for cost in costs))
    return "\n".join([*lines, f"about {whole} in all; memory {memory}, disk {in_words(disk)}"])


@dataclass(frozen=True)
class Evaluated:
    """How a set is evaluated."""

    name: str
    synthetic_set: SyntheticSet  # as networks see it
    judge: Dataset
    recipe: Recipe
    networks: Sequence[str]
    repeats: int
    rates: int = 1  # learning rates that are tried
    teacher: Teacher | None = None


class _Clock:
    """Asked after each step whether to stop, it notes the time; steps count from `first` on."""

    def __init__(self, device: torch.device, first: int = 1) -> None:
        self.device, self.first = device, first
        self.times = [time.perf_counter()]

    def __call__(self) -> bool:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        counted = len(self.times) - 1 - self.first
        if counted <= 0:
            return False
        return counted == _TRIED or self.times[-1] - self.times[self.first] > _LONG

    def step(self) -> float:
        """Seconds of a step that is counted, or of all where there is none such."""
        times = self.times[self.first :] if len(self.times) > self.first + 1 else self.times
        return (times[-1] - times[0]) / (len(times) - 1)


def _epochs_tried(steps: int, first: int = 1) -> int:
    """Epochs of so many steps that hold those that are tried."""
    return math.ceil((first + _TRIED) / steps)


def estimate_training(
    spec: str,
    images: Images,
    labels: Tensor,
    judge: Dataset,
    recipe: Recipe,
    networks: int,
    together: int | None,
    teacher: Teacher | None = None,
) -> TrainingCost:
    """Try a few steps of training and a batch of the test images that judge it.

    Args:
        spec: the architecture.
        images: `(N, channels, height, width)` to learn from, where to compute.
        labels: theirs.
        judge: whose test images the networks are tested on.
        recipe: how they are trained.
        networks: how many.
        together: networks at once; None: as suits the device.
        teacher: whose logits they learn, if there is one.
    """
    device = images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    size = min(networks, networks_together(spec, device, together))
    seeds = list(range(size))
    stack = Stack.fresh(spec, judge.shape, judge.num_classes, seeds, device, recipe.precision)
    strategy = Strategy.parse(recipe.augmentation, mirror=judge.mirror)
    steps = math.ceil(len(images) / recipe.batch_size)
    began = time.perf_counter()
    epochs = draw_epochs(seeds, len(images), recipe, strategy)
    training = Training(stack, recipe, strategy, objective=objective_of(recipe), teach=teacher)
    first = 1 + CALLS_BEFORE if training.captures else 1  # a step that is done again
    drawn = list(islice(epochs, _epochs_tried(steps, first)))
    draw = (time.perf_counter() - began) / len(drawn)
    clock = _Clock(device, first)
    training(images, labels, drawn, stopping=clock)
    batches = list(islice(judge.batches(judge.test, device), 1))
    stack.accuracy(batches)
    began = time.perf_counter()
    stack.accuracy(batches)
    test = (time.perf_counter() - began) * len(judge.test) / len(batches[0][1])
    of_group = recipe.epochs * (draw + steps * clock.step()) + test
    seconds = math.ceil(networks / size) * of_group
    return TrainingCost(spec, networks, recipe.epochs * steps, clock.step(), seconds, peak(device))
