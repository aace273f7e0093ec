"""How networks that learn from a set are trained, and what in that is the set's own."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from cmidd.datasets import Dataset
from cmidd.options.recipe import Recipe
from cmidd.synthetic import SyntheticSet
from cmidd.teaching import Teacher, check_loss


class Protocol(NamedTuple):
    """How a set is evaluated."""

    dataset: Dataset
    recipe: Recipe
    about: str  # in a line, what was the set's own


def evaluation_protocol(
    synthetic_set: SyntheticSet,
    dataset: Dataset,
    recipe: Recipe,
    lr: float | None = None,
    teacher: Teacher | None = None,
) -> Protocol:
    """What to evaluate a set with.

    Args:
        synthetic_set: its whitening makes the test images what its networks have learnt to see.
        dataset: whose test images judge.
        recipe: how networks are trained; its learning rate is for sets that learned none, and for a
            teacher's logits.
        lr: the learning rate that the user gave, which goes before the one that the set learned.
        teacher: what networks learn in the place of the set's labels.
    """
    check_loss(recipe, teacher)
    rate, origin = recipe.lr, "of the protocol"
    if lr is not None:
        rate, origin = lr, "as given"
    elif synthetic_set.learned_lr is not None and teacher is None:
        rate, origin = synthetic_set.learned_lr, "as the set learned it"
    labels = f"{'hard' if synthetic_set.soft_labels is None else 'soft'} labels"
    if teacher is not None:
        labels = f"{teacher.about} ({recipe.loss_in_words()})"
    whitening = synthetic_set.whitening
    zca = "none" if whitening is None else f"the set's own, eps {whitening.eps:g}"
    about = f"{recipe.in_words()}, learning rate {rate:g} ({origin}), {labels}, ZCA: {zca}"
    return Protocol(synthetic_set.whiten(dataset), replace(recipe, lr=float(rate)), about)
