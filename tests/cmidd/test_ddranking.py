from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmidd.ddranking import RATES, Comparison, comparisons, robust_scores
from cmidd.evaluate import Accuracy, evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.first_images import first_images
from cmidd.options.recipe import DSA, Recipe
from cmidd.robust_scores import augmentation_robust_score, label_robust_score
from cmidd.storage.tensor_file import FileError
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import NETWORK, quiet, tiny_dataset

DATASET = tiny_dataset()
RECIPE = Recipe(epochs=2, batch_size=4, augmentation="flip")
TERMS = {"own", "hard", "random", "augmented", "plain", "random_augmented", "random_plain"}


def a_set(*, soft: bool = False) -> SyntheticSet:
    made = SyntheticSet.of(DATASET, *first_images(DATASET, 2, "noise", 0))
    labels = torch.full((6, 3), 0.1) + 0.7 * torch.eye(3)[made.labels]
    return replace(made, soft_labels=labels) if soft else made


def compared(made: SyntheticSet, recipe: Recipe = RECIPE, **more: Any) -> dict[str, Comparison]:
    return comparisons("the set", made, DATASET, recipe, **more)


# --- what is compared


def test_a_set_of_classes_is_compared_with_itself_without_augmentation() -> None:
    made = a_set()
    found = compared(made, lr=0.3)
    assert set(found) == TERMS
    assert found["own"] is found["hard"] is found["augmented"]
    assert found["random"] is found["random_augmented"]
    assert found["own"].images is found["plain"].images is made
    assert found["own"].rates == found["plain"].rates == (0.3,)
    assert found["own"].recipe == RECIPE
    assert found["plain"].recipe == replace(RECIPE, augmentation="none")
    assert found["random_plain"].recipe == replace(RECIPE, augmentation="none")
    assert found["random"].rates == found["random_plain"].rates == RATES


def test_hard_labels_of_a_set_with_soft_ones_are_classes_with_a_rate_of_their_own() -> None:
    made = a_set(soft=True)
    found = compared(made)
    assert found["own"].images.soft_labels is made.soft_labels
    assert found["hard"].images.soft_labels is None
    assert torch.equal(found["hard"].images.images, made.images)
    assert (found["own"].rates, found["hard"].rates) == ((None,), RATES)
    assert found["random"].images.soft_labels is None


def test_a_recipe_without_augmentation_has_that_of_dsa_for_ars() -> None:
    found = compared(a_set(), replace(RECIPE, augmentation="none"))
    assert found["own"] is found["plain"]
    assert found["random"] is found["random_plain"]
    assert found["augmented"].recipe.augmentation == DSA
    assert found["random_augmented"].recipe.augmentation == DSA


def test_random_real_images_are_as_many_of_each_class_as_the_set_has() -> None:
    made = a_set()
    some = torch.tensor([0, 2, 3, 4, 5])  # one of the first class
    fewer = SyntheticSet(made.images[some], made.labels[some], made.record)
    random = compared(fewer, seed=3)["random"].images
    assert random.labels.tolist() == [0, 1, 1, 2, 2]
    drawn = first_images(DATASET, 2, "real", 3)[0][some]
    assert torch.equal(random.images[1:], drawn[1:])
    assert not torch.equal(random.images, compared(fewer, seed=4)["random"].images.images)


def test_real_images_are_whitened_as_the_set_is() -> None:
    white = DATASET.whitened()
    made = SyntheticSet.of(white, *first_images(white, 2, "real", 0))
    found = compared(made, real_recipe=Recipe(epochs=1))
    assert torch.equal(found["random"].images.images, made.images)  # the same draw of the same seed
    assert torch.equal(found["real"].images.images, white.to_input(DATASET.train.images))
    assert found["real"].images.whitening is made.whitening
    assert found["real"].recipe == Recipe(epochs=1)


# --- the scores


def taught(comparison: Comparison, lr: float | None) -> Accuracy:
    """Accuracies of two networks that one can compute by hand."""
    of_rate = {0.05: 0.1, 0.1: 0.08}.get(lr or 0.0, 0.0)
    of_recipe = 0.2 if comparison.recipe.augmentation == "none" else 0.3
    of_images = {"the": 0.2, "all": 0.6}.get(comparison.name.split()[0], 0.0)
    mean = of_rate + of_recipe + of_images
    return Accuracy(NETWORK, (mean - 0.02, mean + 0.02), replace(comparison.recipe, lr=lr or 0.01))


def test_scores_are_those_of_each_network_with_the_best_learning_rate() -> None:
    found = robust_scores(compared(a_set(), real_recipe=RECIPE), NETWORK, taught)
    assert found.accuracies["own"] == pytest.approx((0.48, 0.52))
    assert found.accuracies["plain"] == pytest.approx((0.38, 0.42))
    assert found.accuracies["random"] == pytest.approx((0.38, 0.42))
    assert found.accuracies["random_plain"] == pytest.approx((0.28, 0.32))
    assert found.accuracies["real"] == pytest.approx((0.88, 0.92))
    assert found.lrs == pytest.approx([label_robust_score(0.5, 0.5, 0.4, 0.9)] * 2)
    assert found.ars == pytest.approx([augmentation_robust_score(0.5, 0.4, 0.4, 0.3)] * 2)
    assert found.rates == dict.fromkeys(("random", "random_augmented", "random_plain"), 0.05)


def test_an_accuracy_on_real_images_may_be_given_and_weights_count() -> None:
    found = robust_scores(
        compared(a_set()), NETWORK, taught, real_accuracy=0.9, lrs_weight=0.25, ars_weight=1.0
    )
    assert found.accuracies["real"] == (0.9, 0.9)
    for k, own, random in ((0, 0.48, 0.38), (1, 0.52, 0.42)):
        assert found.lrs[k] == pytest.approx(label_robust_score(own, own, random, 0.9, 0.25))
        assert found.ars[k] == pytest.approx(augmentation_robust_score(own, 0, random, 0, 1.0))
    record = found.as_record()
    assert record["lrs"]["of_networks"] == list(found.lrs)
    assert record["lrs"]["mean"] == pytest.approx(sum(found.lrs) / 2)
    assert record["lrs"]["std"] == pytest.approx((found.lrs[1] - found.lrs[0]) / 2)
    assert (record["lrs_weight"], record["ars_weight"]) == (0.25, 1.0)


def test_the_table_has_all_accuracies_and_both_scores() -> None:
    lines = (
        robust_scores(compared(a_set(), real_recipe=RECIPE), NETWORK, taught).table().splitlines()
    )
    assert [" ".join(line.split()) for line in lines] == [
        "its own labels and recipe 50.0% +- 2.0%",
        "hard labels 50.0% +- 2.0%",
        "random real images 40.0% +- 2.0% (learning rate 0.05)",
        "all real images 90.0% +- 2.0%",
        "with augmentation 50.0% +- 2.0%",
        "without augmentation 40.0% +- 2.0%",
        "random, with augmentation 40.0% +- 2.0% (learning rate 0.05)",
        "random, without augmentation 30.0% +- 2.0% (learning rate 0.05)",
        "LRS 0.2097 +- 0.0000",
        "ARS 0.3137 +- 0.0000",
    ]


def test_all_that_is_compared_can_be_trained_on() -> None:
    held = DATASET.holding_out(0.4)
    white = held.whitened()
    made = SyntheticSet.of(white, *first_images(white, 2, "noise", 0), {"learned_lr": 0.02})
    made = replace(made, soft_labels=a_set(soft=True).soft_labels)
    rates = set()

    def train(comparison: Comparison, lr: float | None) -> Accuracy:
        (found,) = evaluate_set(comparison.images, held, "mlp:width=4", repeats=1, device="cpu",
                                recipe=comparison.recipe, lr=lr, say=quiet)  # fmt: skip
        rates.add((comparison.name, found.recipe.lr))
        return found

    recipe = Recipe(epochs=1, augmentation="flip")
    terms = comparisons("the set", made, held, recipe, real_recipe=Recipe(epochs=1))
    found = robust_scores(terms, "mlp:width=4", train)
    assert found.accuracies.keys() == TERMS | {"real"}
    assert {("the set", 0.02), ("the set, without augmentation", 0.02)} <= rates
    assert {rate for name, rate in rates if name == "the set, hard labels"} == set(RATES)
    assert 0 <= found.lrs[0] <= 1


# --- how they are kept


def file_at(path: Path, *, resume: bool = False) -> EvaluationFile:
    settings, about = {"dataset": "tiny", "seed": 0}, {"command": "the command"}
    return EvaluationFile(path, settings, about, resume=resume)


def trained(made: SyntheticSet, store: Any, repeats: int = 2, **recipe: Any) -> list[str]:
    """What training says."""
    said: list[str] = []
    evaluate_set(made, DATASET, NETWORK, repeats=repeats, recipe=replace(RECIPE, **recipe),
                 device="cpu", store=store, say=said.append)  # fmt: skip
    return said


THERE = f"{NETWORK}: 2 of 2 networks are there already"


def test_networks_are_known_by_what_they_learned_from_and_how(tmp_path: Path) -> None:
    made, other = a_set(), a_set(soft=True)
    file = file_at(tmp_path / "file")
    trained(made, file.of("the set", made))
    assert THERE in trained(made, file.compared("by another name", made))
    trained(made, file.compared("the set, plain", made), augmentation="none")
    before = (tmp_path / "file").read_bytes()
    file = file_at(tmp_path / "file", resume=True)
    assert THERE in trained(made, file.compared("any", made), augmentation="none")
    assert (tmp_path / "file").read_bytes() == before
    assert THERE not in trained(made, file.compared("the set", made), lr=0.05)
    assert THERE not in trained(other, file.compared("the set", other))
    assert f"{NETWORK}: 2 of 3 networks are there already" in trained(
        made, file.compared("the set", made), repeats=3, lr=0.05
    )


def test_scores_stay_and_are_replaced_by_later_ones(tmp_path: Path) -> None:
    for k, name in enumerate(("one", "two", "one")):
        file_at(tmp_path / "file", resume=True).keep_scores(name, {"network": "mlp", "lrs": k})
    record = json.loads((tmp_path / "file").read_text())
    assert record["ddranking"]["scores"] == [
        {"set": "one", "network": "mlp", "lrs": 2},
        {"set": "two", "network": "mlp", "lrs": 1},
    ]


@pytest.mark.parametrize(
    "ranking",
    ["[]", "{}", '{"compared": [{}], "scores": []}', '{"compared": [], "scores": [{"set": "a"}]}',
     '{"compared": [{"crc32": 1, "network": "mlp"}], "scores": []}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, ranking: str) -> None:
    text = f'{{"dataset": "tiny", "seed": 0, "results": [], "ddranking": {ranking}}}'
    (tmp_path / "file").write_text(text)
    with pytest.raises(FileError, match="file: expected the JSON that cmidd evaluate writes"):
        file_at(tmp_path / "file", resume=True)


def test_a_set_of_its_own_is_trained_once_for_all_terms(tmp_path: Path) -> None:
    made = a_set()
    calls: list[tuple[str, float | None]] = []

    def train(comparison: Comparison, lr: float | None) -> Accuracy:
        calls.append((comparison.name, lr))
        return Accuracy(NETWORK, (0.5,), comparison.recipe)

    robust_scores(compared(made), NETWORK, train, real_accuracy=0.9)
    of_random = "6 random real images"
    assert calls == [
        ("the set", None),
        *((of_random, rate) for rate in RATES),
        ("the set, without augmentation", None),
        *((f"{of_random}, without augmentation", rate) for rate in RATES),
    ]
    calls.clear()
    robust_scores(compared(a_set(soft=True)), NETWORK, train, real_accuracy=0.9)
    assert [name for name, _ in calls].count("the set, hard labels") == len(RATES)
