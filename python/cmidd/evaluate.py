"""Evaluation: fresh networks trained on a set, judged on the real test images.

The published protocol: SGD with learning rate 0.01 (a tenth from half of the epochs on), momentum
0.9, weight decay 5e-4, batches of 256, 1000 epochs with DSA, accuracy of the last epoch; mean and
standard deviation over several networks with their own seeds. The record of a set may say that its
method was published with another, and networks may learn a teacher's logits (`teaching.py`). Unlike
some of the field's scripts we keep the optimiser's momentum where the learning rate drops.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images
from cmidd.device import precision_on, usable_device
from cmidd.evaluation_protocol import evaluation_protocol
from cmidd.interruption import Stop, deferred
from cmidd.networks import Network, build_network
from cmidd.networks.usual import usual_network
from cmidd.options.recipe import PUBLISHED_RECIPE, Recipe, recipe_of
from cmidd.progress import progress
from cmidd.seeds import seed_of
from cmidd.stack import Stack, network_of, networks_together
from cmidd.storage.tensor_file import checksum
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import Teacher, check_loss, objective_of
from cmidd.training import Progress, fresh_and_trained
from cmidd.training_file import TrainingFile, about_training, train_or_go_on, training_path


@dataclass(frozen=True)
class Accuracy:
    """What networks of one architecture reached."""

    network: str
    accuracies: tuple[float, ...]  # share of test images, one for each network
    recipe: Recipe

    @property
    def mean(self) -> float:
        """Mean over networks."""
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float:
        """Standard deviation over networks (of the population, as the field reports it)."""
        return statistics.pstdev(self.accuracies)

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        about = {"recipe": self.recipe.as_record(), "mean": self.mean, "std": self.std}
        return {**asdict(self), **about}


class Store:
    """Where results are kept network by network, and found again; this one keeps nothing."""

    path: Path | None = None
    """Beside which training that a signal stops is kept."""

    def known(self, network: str, recipe: Recipe) -> tuple[float, ...]:  # noqa: ARG002
        """Accuracies of the first networks of an architecture, trained by this recipe."""
        return ()

    def keep(self, accuracy: Accuracy) -> None:
        """Keep what the networks of an architecture reached so far."""


NOWHERE = Store()


def evaluate_set(
    synthetic_set: SyntheticSet,
    dataset: Dataset,
    networks: str | Sequence[str] | None = None,
    *,
    repeats: int = 5,
    recipe: Recipe | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    together: int | None = None,
    teacher: Teacher | None = None,
    store: Store = NOWHERE,
    say: Callable[[str], None] = print,
) -> list[Accuracy]:
    """Train fresh networks on a set and test them on the real test images.

    Args:
        synthetic_set: as it was distilled; networks see it through its view.
        dataset: whose test images judge.
        networks: architectures; default: the one that the set was made for.
        repeats: networks of each.
        recipe: default: as the set's method was published; with a teacher as usual for one.
        lr: learning rate; default: what the set learned with its images, or the recipe's.
        seed: of first weights, order and augmentation.
        device: default: a GPU where there is one.
        together: networks trained at once; default: 1 on a CPU, on a GPU 5 small ones.
        teacher: whose logits networks learn: `SoftLabels` of the set, which say how images are
            ordered, augmented and mixed, or `TeacherNetworks`; default: none, they learn labels.
        store: where results are kept and found again.
        say: told the protocol, where each architecture goes on, and its result.
    """
    seen = synthetic_set.seen()
    recipe = recipe or recipe_of(seen.record, taught=None if teacher is None else teacher.draws)
    judge, recipe, about = evaluation_protocol(seen, dataset, recipe, lr, teacher)
    judge.check_made_for(seen.record, "synthetic_set")
    judge.check_unseen(seen.record, "synthetic_set")
    if teacher is not None:
        teacher.check(synthetic_set, judge, recipe)
    say(about)
    chosen = networks or seen.record.get("network") or usual_network(dataset.shape.height)
    return evaluate(
        seen.source,
        seen.targets,
        judge,
        (chosen,) if isinstance(chosen, str) else chosen,
        repeats=repeats,
        recipe=recipe,
        seed=seed,
        device=usable_device(device),
        together=together,
        teacher=teacher,
        store=store,
        say=say,
    )


def train_on(
    synthetic_set: SyntheticSet,
    dataset: Dataset,
    network: str | None = None,
    *,
    recipe: Recipe | None = None,
    lr: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Network:
    """A fresh network that has learnt from a set, as evaluation trains the first of its networks.

    Args:
        synthetic_set: as it was distilled.
        dataset: that it was distilled from.
        network: architecture; default: the one that the set was made for.
        recipe: default: as the set's method was published.
        lr: learning rate; default: what the set learned with its images, or the recipe's.
        seed: of first weights, order and augmentation.
        device: default: a GPU where there is one.
    """
    seen = synthetic_set.seen()
    judge, recipe, _ = evaluation_protocol(seen, dataset, recipe or recipe_of(seen.record), lr)
    judge.check_made_for(seen.record, "synthetic_set")
    place = usable_device(device)
    spec = network or seen.record.get("network") or usual_network(dataset.shape.height)
    stack = fresh_and_trained(
        spec,
        seen.source.to(place),
        seen.targets.to(place),
        dataset.num_classes,
        [seed_of(seed, "evaluation", 0)],
        recipe,
        mirror=dataset.mirror,
    )
    return network_of(spec, dataset.shape, dataset.num_classes, stack.states()[0]).eval()


def evaluate(
    images: Images,
    labels: Tensor,
    dataset: Dataset,
    networks: Sequence[str],
    *,
    repeats: int = 5,
    recipe: Recipe = PUBLISHED_RECIPE,
    seed: int = 0,
    device: torch.device,
    together: int | None = None,
    teacher: Teacher | None = None,
    store: Store = NOWHERE,
    say: Callable[[str], None] = print,
) -> list[Accuracy]:
    """Train `repeats` fresh networks of each architecture on a set and test them.

    Args:
        images: `(N, channels, height, width)`, as `dataset.to_input` or `dataset.inputs` makes
            them.
        labels: `(N,)`, or `(N, C)` of probabilities.
        dataset: whose test images judge, normalised and whitened as `images` are.
        networks: architectures, such as convnet or resnet18.
        repeats: networks of each.
        recipe: how they are trained.
        seed: of first weights, order and augmentation; network k of a seed is always the same.
        device: where.
        together: networks trained at once; default: 1 on a CPU, on a GPU 5 small ones.
        teacher: whose logits networks learn, of just these images; None: they learn labels.
        store: where results are kept and found again.
        say: told where each architecture goes on, and its result.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the step under way was finished, and the store keeps
            what there is.
    """
    check_loss(recipe, teacher)
    recipe = replace(recipe, precision=precision_on(device, recipe.precision))
    for spec in networks:  # so that a mistake in the last is not found after hours with the first
        build_network(spec, dataset.shape.channels, dataset.shape.height, dataset.num_classes)
    learned = 0
    if store.path or ranks.count() > 1:
        learned = checksum({"images": images, "labels": labels})
        if len(set(ranks.from_all(learned))) > 1:
            raise ValueError("images, labels: expected the same on all ranks, which share networks")
        taught = ranks.from_all(None if teacher is None else dict(teacher.record))
        if any(each != taught[0] for each in taught):
            raise ValueError(f"teacher: expected the same on all ranks, got {taught}")
    images, labels = images.to(device), labels.to(device)
    results = []
    with deferred() as stop:
        train_some = partial(
            _trained_and_tested, images, labels, dataset, recipe, teacher, learned, stop, say
        )
        for spec in networks:
            accuracies = ranks.from_first(partial(store.known, spec, recipe))
            if accuracies:
                there = min(len(accuracies), repeats)
                say(f"{spec}: {there} of {repeats} networks are there already")
            seeds = [seed_of(seed, "evaluation", k) for k in range(repeats)]
            size = networks_together(spec, device, together)
            with progress(
                total=repeats * recipe.epochs,
                initial=min(len(accuracies), repeats) * recipe.epochs,
                desc=f"training {spec}",
                unit="epoch",
                leave=False,
            ) as bar:
                while len(accuracies) < repeats:
                    first = len(accuracies) + size * ranks.number()  # each rank takes a group
                    group, what = seeds[first:][:size], f"network {first + 1} of {repeats} ({spec})"
                    kept_in = store.path and training_path(store.path, first + 1)
                    reached = train_some(spec, group, what, bar, kept_in) if group else ()
                    for of_rank in ranks.from_all(reached):
                        accuracies += of_rank
                    store.keep(Accuracy(spec, accuracies, recipe))
                    if kept_in is not None:
                        kept_in.unlink(missing_ok=True)
                    if ranks.any_of(stop.asked) and len(accuracies) < repeats:
                        raise stop.interruption(
                            f"interrupted after {len(accuracies)} of {repeats} networks ({spec})"
                        )
            found = Accuracy(spec, accuracies, recipe)
            results.append(found)
            say(
                f"{spec}: {found.mean:.1%} +- {found.std:.1%} of {len(dataset.test)} "
                f"{dataset.judges} right"
            )
    return results


def _trained_and_tested(
    images: Images,
    labels: Tensor,
    dataset: Dataset,
    recipe: Recipe,
    teacher: Teacher | None,
    learned: int,
    stop: Stop,
    say: Callable[[str], None],
    spec: str,
    seeds: Sequence[int],
    what: str,
    bar: Any,
    kept_in: Path | None,
) -> tuple[float, ...]:
    """Accuracies of networks that are trained together on what has the checksum `learned`."""
    kept = None
    if kept_in is not None:
        taught = {} if teacher is None else teacher.record
        about = about_training(seeds, spec, recipe, {"crc32": learned, **taught})
        kept = TrainingFile(kept_in, about)

    def begin(done: Progress | None) -> None:
        if done is not None and done.epoch < recipe.epochs:
            say(f"{what}: going on in epoch {done.epoch + 1}")
            bar.update(len(seeds) * done.epoch)

    def advance(_: int, loss: float) -> None:
        bar.update(len(seeds))
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    shape, device = images.shape[1:], images.device
    stack = Stack.fresh(spec, shape, dataset.num_classes, seeds, device, recipe.precision)
    strategy = Strategy.parse(recipe.augmentation, mirror=dataset.mirror)
    train_or_go_on(
        stack,
        images,
        labels,
        recipe,
        strategy,
        seeds if teacher is None or teacher.seed is None else [teacher.seed] * len(seeds),
        kept=kept,
        stop=stop,
        what=what,
        objective=objective_of(recipe),
        at_start=begin,
        on_epoch=advance,
        teach=teacher,
    )
    if kept is not None and ranks.count() > 1:  # a signal may end another rank, and all with it
        kept.save(stack, Progress(recipe.epochs))
    return tuple(stack.accuracy(dataset.batches(dataset.test, device)))
