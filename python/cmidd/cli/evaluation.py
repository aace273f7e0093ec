"""`cmidd evaluate`: fresh networks learn from sets, and the scores of DD-Ranking compare them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch

from cmidd.augment import Strategy
from cmidd.cli.data import load_for, load_sets
from cmidd.cli.filling import filling
from cmidd.cli.flags import command_line
from cmidd.cli.training_costs import Evaluated, cost_of_evaluation
from cmidd.datasets import Dataset
from cmidd.ddranking import Comparison, comparisons, random_like, robust_scores
from cmidd.device import precision_on, usable_device
from cmidd.evaluate import Accuracy, Store, evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.evaluation_protocol import evaluation_protocol
from cmidd.first_images import real_set
from cmidd.label_file import SoftLabels
from cmidd.networks import build_network
from cmidd.networks.usual import usual_network
from cmidd.options.commands import SetDataOptions
from cmidd.options.evaluation import EvaluateOptions
from cmidd.options.recipe import Recipe
from cmidd.pretrained.teachers import load_teachers
from cmidd.storage.run_folder import versions
from cmidd.synthetic import SyntheticSet, file_of
from cmidd.teaching import Teacher, TeacherNetworks

_ALL_REAL = "all real images"


def run_evaluate(data: SetDataOptions, options: EvaluateOptions) -> None:
    """Train fresh networks on sets and test them on real images."""
    if options.dry_run:
        plan = _Plan.of(data, options)
        print(cost_of_evaluation(plan.trainings(), options.together, plan.device))
        return
    with filling(options.out, resume=options.resume):
        _evaluate(data, options)
    print(f"the results: {options.out}")


class _Plan(NamedTuple):
    """What is evaluated, by the names of sets."""

    options: EvaluateOptions
    dataset: Dataset
    device: torch.device
    sets: dict[str, SyntheticSet]
    recipes: dict[str, Recipe]
    networks: dict[str, tuple[str, ...]]
    teacher: Teacher | None

    @classmethod
    def of(cls, data: SetDataOptions, options: EvaluateOptions) -> _Plan:
        """What options ask for, once all of it is known to be possible."""
        dataset, device = load_for(options.sets, data), usable_device(data.device)
        sets = load_sets(dataset, options.sets, options.random_real, options.seed)
        if options.all_real:
            sets[_ALL_REAL] = real_set(dataset)
        teacher = _teacher(options, dataset, sets, device)
        taught = None if teacher is None else teacher.draws
        recipes = {name: options.recipe(each.record, taught) for name, each in sets.items()}
        if options.all_real:
            recipes[_ALL_REAL] = options.real_recipe(taught)
        if teacher is not None:
            for name, each in sets.items():
                teacher.check(each, each.whiten(dataset), recipes[name])
            sets = {f"{name}, {teacher.about}": each for name, each in sets.items()}
            recipes = dict(zip(sets, recipes.values(), strict=True))
        networks = _networks(dataset, sets, options.networks)
        plan = cls(options, dataset, device, sets, recipes, networks, teacher)
        channels, size, _ = dataset.shape
        for name in plan.ranked():  # so that a mistake is not found after hours
            random_like(sets[name], dataset, options.seed)
        for name in sets:
            Strategy.parse(recipes[name].augmentation, mirror=dataset.mirror)
            for spec in networks[name]:
                build_network(spec, channels, size, dataset.num_classes)
        return plan

    def compared(self, name: str) -> dict[str, Comparison]:
        """What the scores of a set compare."""
        known = self.options.real_accuracy is not None
        return comparisons(
            name,
            self.sets[name],
            self.dataset,
            self.recipes[name],
            lr=self.options.lr,
            seed=self.options.seed,
            real_recipe=None if known else self.options.real_recipe(),
        )

    def ranked(self) -> list[str]:
        """The sets that have scores."""
        paths = self.options.sets if self.options.ddranking else ()
        return list(dict.fromkeys(str(file_of(path)) for path in paths))

    def trainings(self) -> Iterator[Evaluated]:
        """All that networks are trained on, each once."""
        told = set()
        for name, synthetic_set in self.sets.items():
            own = Comparison(name, synthetic_set, self.recipes[name], (self.options.lr,))
            compared = self.compared(name) if name in self.ranked() else {}
            others = [each for each in compared.values() if each is not compared["own"]]
            for comparison in (own, *others):
                training = self._evaluated(comparison, name)
                zca = comparison.images.record.get("zca")
                key = comparison.name, training.networks, training.recipe, zca
                if key not in told:
                    told.add(key)
                    yield training

    def _evaluated(self, comparison: Comparison, name: str) -> Evaluated:
        """How networks are trained for a set."""
        seen, (rate, *more) = comparison.images.seen(), comparison.rates
        judge, recipe, _ = evaluation_protocol(
            seen, self.dataset, comparison.recipe, rate, self.teacher
        )
        networks, repeats = self.networks[name], self.options.repeats
        return Evaluated(
            comparison.name, seen, judge, recipe, networks, repeats, 1 + len(more), self.teacher
        )

    def train(
        self,
        images: SyntheticSet,
        network: str | tuple[str, ...],
        recipe: Recipe,
        lr: float | None,
        store: Store,
    ) -> list[Accuracy]:
        """Fresh networks of each architecture, trained on images."""
        return evaluate_set(
            images,
            self.dataset,
            network,
            repeats=self.options.repeats,
            recipe=recipe,
            lr=lr,
            seed=self.options.seed,
            device=self.device,
            together=self.options.together,
            teacher=self.teacher,
            store=store,
        )


def _evaluate(data: SetDataOptions, options: EvaluateOptions) -> None:
    """Fill the file of results, whose lock is held."""
    plan = _Plan.of(data, options)
    dataset = plan.dataset
    file = EvaluationFile(
        options.out,
        {"dataset": dataset.name, "held_out": dataset.held_out, "seed": options.seed},
        {"command": command_line("evaluate", (data, options)), "versions": versions()},
        resume=options.resume,
    )
    for name, each in plan.sets.items():
        print(name, end=": ", flush=True)
        store = file.of(name, each, plan.teacher)
        plan.train(each, plan.networks[name], plan.recipes[name], options.lr, store)
    for name in plan.ranked():
        _rank(plan, name, file)


def _rank(plan: _Plan, name: str, file: EvaluationFile) -> None:
    """Train what the scores of a set compare, and keep and print them."""
    options, compared = plan.options, plan.compared(name)
    stores = {each: file.compared(each.name, each.images) for each in set(compared.values())}

    def train(network: str, comparison: Comparison, lr: float | None) -> Accuracy:
        print(comparison.name, end=": ", flush=True)
        images, recipe = comparison.images, comparison.recipe
        (found,) = plan.train(images, network, recipe, lr, stores[comparison])
        return found

    for network in plan.networks[name]:
        scores = robust_scores(
            compared,
            network,
            partial(train, network),
            real_accuracy=options.real_accuracy,
            lrs_weight=options.lrs_weight,
            ars_weight=options.ars_weight,
        )
        file.keep_scores(name, scores.as_record())
        print(f"{name}, {network}:\n{scores.table()}")


def _teacher(
    options: EvaluateOptions,
    dataset: Dataset,
    sets: Mapping[str, SyntheticSet],
    device: torch.device,
) -> Teacher | None:
    """What networks learn in the place of labels, if anything."""
    if options.labels is not None:
        return SoftLabels.load(options.labels)
    if not options.teacher:
        return None
    first, *others = sets.values()
    for each in others:
        if each.record.get("zca") != first.record.get("zca"):
            raise ValueError(
                "teacher: expected sets that are whitened alike, as a teacher sees them, got zca "
                f"{first.record.get('zca')} and {each.record.get('zca')}; give a command for each"
            )
    networks = load_teachers(options.teacher, first.whiten(dataset), device)
    name = " and ".join(map(str, options.teacher))
    return TeacherNetworks(networks, name, precision_on(device, options.precision))


def _networks(
    dataset: Dataset, sets: Mapping[str, SyntheticSet], given: tuple[str, ...] | None
) -> dict[str, tuple[str, ...]]:
    """The architectures to train on each set: the given ones, or the one that it was made for.

    Sets of real images, and of tools that do not say, take those of all others.
    """
    own = {name: each.record.get("network") for name, each in sets.items()}
    every = tuple(dict.fromkeys(spec for spec in own.values() if spec is not None))
    others = every or (usual_network(dataset.shape.height),)
    return {name: given or ((spec,) if spec else others) for name, spec in own.items()}
