"""What networks have to be trained on for the scores of DD-Ranking, and the scores of a set.

Where ours differ from those of the release, beside what `robust_scores` says: an accuracy is that
of the last epoch and not the best of all epochs; a learning rate that is searched is the one whose
mean over all networks is best, not one for each network, and that of the set itself is not
searched; random real images are one draw for all networks, and their labels are classes also where
the set has soft ones, which no teacher made; a set's own recipe decides on augmentation also for
its hard labels; all real images are trained on as an evaluation does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cmidd.datasets import Dataset
from cmidd.evaluate import Accuracy
from cmidd.first_images import random_real_set, real_set
from cmidd.options.recipe import DSA, Recipe
from cmidd.robust_scores import augmentation_robust_score, label_robust_score
from cmidd.synthetic import SyntheticSet

RATES = (0.001, 0.005, 0.01, 0.05, 0.1)
"""The learning rates of which the best counts, for random real images and for hard labels."""

_TERMS = {
    "own": "its own labels and recipe",
    "hard": "hard labels",
    "random": "random real images",
    "real": "all real images",
    "augmented": "with augmentation",
    "plain": "without augmentation",
    "random_augmented": "random, with augmentation",
    "random_plain": "random, without augmentation",
}
"""The accuracies that the scores compare, in words."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Images that networks are trained on for the scores."""

    name: str
    images: SyntheticSet
    recipe: Recipe
    rates: tuple[float | None, ...] = (None,)
    """Learning rates, of which the best counts; None is the set's own, or the recipe's."""


def comparisons(
    name: str,
    synthetic_set: SyntheticSet,
    dataset: Dataset,
    recipe: Recipe,
    *,
    lr: float | None = None,
    seed: int = 0,
    real_recipe: Recipe | None = None,
) -> dict[str, Comparison]:
    """What the scores of a set compare, by the terms of the formulas; some are one and the same.

    Args:
        name: of the set.
        synthetic_set: as it was distilled.
        dataset: that it was distilled from.
        recipe: of the set. One without augmentation has all of DSA where ARS asks for some.
        lr: the learning rate that the user gave for the set.
        seed: of the random real images.
        real_recipe: of networks on all real images; None: their accuracy is known.
    """
    judge = synthetic_set.whiten(dataset)
    own = Comparison(name, synthetic_set, recipe, (lr,))
    hard = own
    if synthetic_set.soft_labels is not None:
        with_classes = replace(synthetic_set, soft_labels=None)
        hard = Comparison(f"{name}, hard labels", with_classes, recipe, RATES)
    drawn = random_like(synthetic_set, judge, seed)
    random = Comparison(f"{len(drawn.labels)} random real images", drawn, recipe, RATES)
    if recipe.augmentation == "none":
        plain, random_plain = own, random
        augmented, random_augmented = (_augmented(each, DSA) for each in (own, random))
    else:
        augmented, random_augmented = own, random
        plain, random_plain = (_augmented(each, "none") for each in (own, random))
    found = {
        "own": own,
        "hard": hard,
        "random": random,
        "augmented": augmented,
        "plain": plain,
        "random_augmented": random_augmented,
        "random_plain": random_plain,
    }
    if real_recipe is not None:
        found["real"] = Comparison("all real images", real_set(judge), real_recipe, (lr,))
    return found


def _augmented(comparison: Comparison, augmentation: str) -> Comparison:
    words = "without augmentation" if augmentation == "none" else "with augmentation"
    recipe = replace(comparison.recipe, augmentation=augmentation)
    if augmentation == "none":
        recipe = replace(recipe, cutmix=0.0)
    return replace(comparison, name=f"{comparison.name}, {words}", recipe=recipe)


def random_like(synthetic_set: SyntheticSet, judge: Dataset, seed: int) -> SyntheticSet:
    """Random real images that `judge` trains on, of each class as many as the set stores."""
    counts = torch.bincount(synthetic_set.labels, minlength=judge.num_classes)
    return random_real_set(judge, counts.tolist(), seed, "ddranking")


@dataclass(frozen=True)
class RobustScores:
    """LRS and ARS of a set by networks of one architecture, and what they are made of."""

    network: str
    lrs: tuple[float, ...]  # of each network's accuracies
    ars: tuple[float, ...]
    lrs_weight: float
    ars_weight: float
    accuracies: Mapping[str, tuple[float, ...]]  # by the terms of the formulas
    rates: Mapping[str, float]  # of those whose learning rate was searched, the best

    def as_record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "network": self.network,
            "lrs": _spread(self.lrs),
            "ars": _spread(self.ars),
            "lrs_weight": self.lrs_weight,
            "ars_weight": self.ars_weight,
            "accuracies": {name: list(found) for name, found in self.accuracies.items()},
            "rates": dict(self.rates),
        }

    def table(self) -> str:
        """For people."""
        width = max(map(len, _TERMS.values()))
        lines = []
        for name, about in _TERMS.items():
            found = self.accuracies[name]
            rate = f"  (learning rate {self.rates[name]:g})" if name in self.rates else ""
            spread = f"{statistics.mean(found):6.1%} +- {statistics.pstdev(found):.1%}"
            lines.append(f"  {about:<{width}}  {spread}{rate}")
        for name, found in (("LRS", self.lrs), ("ARS", self.ars)):
            spread = f"{statistics.mean(found):.4f} +- {statistics.pstdev(found):.4f}"
            lines.append(f"  {name:<{width}}  {spread}")
        return "\n".join(lines)


def _spread(values: tuple[float, ...]) -> dict[str, Any]:
    """Of the population, as accuracies have it."""
    mean, std = statistics.mean(values), statistics.pstdev(values)
    return {"mean": mean, "std": std, "of_networks": list(values)}


def robust_scores(
    compared: Mapping[str, Comparison],
    network: str,
    train: Callable[[Comparison, float | None], Accuracy],
    *,
    real_accuracy: float | None = None,
    lrs_weight: float = 0.5,
    ars_weight: float = 0.5,
) -> RobustScores:
    """Train what is compared, and score it network by network.

    Network k of all that is compared has the same first weights, so a score of its own.

    Args:
        compared: what `comparisons` gave.
        network: the architecture.
        train: trains its networks with a learning rate.
        real_accuracy: of all real images, where they are not among what is compared.
        lrs_weight: w of LRS.
        ars_weight: g of ARS.
    """
    best = {}
    for each in dict.fromkeys(compared.values()):
        found = [train(each, rate) for rate in each.rates]
        best[each] = max(found, key=lambda accuracy: accuracy.mean)
    count = min(len(accuracy.accuracies) for accuracy in best.values())
    accuracies = {name: best[each].accuracies[:count] for name, each in compared.items()}
    if real_accuracy is not None:
        accuracies["real"] = (real_accuracy,) * count
    searched = {name: each for name, each in compared.items() if len(each.rates) > 1}
    of_network = [{name: found[k] for name, found in accuracies.items()} for k in range(count)]
    return RobustScores(
        network,
        tuple(_lrs(each, lrs_weight) for each in of_network),
        tuple(_ars(each, ars_weight) for each in of_network),
        lrs_weight,
        ars_weight,
        accuracies,
        {name: best[each].recipe.lr for name, each in searched.items()},
    )


def _lrs(found: Mapping[str, float], weight: float) -> float:
    return label_robust_score(found["own"], found["hard"], found["random"], found["real"], weight)


def _ars(found: Mapping[str, float], weight: float) -> float:
    return augmentation_robust_score(
        found["augmented"], found["plain"], found["random_augmented"], found["random_plain"], weight
    )
