"""Networks that learn the soft labels of a file."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd import ranks, teaching
from cmidd.augment import Strategy
from cmidd.evaluate import evaluate_set
from cmidd.evaluation_file import EvaluationFile
from cmidd.interruption import Interrupted
from cmidd.label_file import SoftLabels
from cmidd.options.recipe import STUDENT_RECIPE, recipe_of
from cmidd.seeds import seed_of
from cmidd.stack import Stack
from cmidd.teaching import TeacherNetworks
from cmidd.training import train
from cmidd.training_draws import draw_epochs
from cmidd.training_file import TrainingFile
from tests.support.labels import (
    DATASET,
    LONGEST,
    SET,
    Recorded,
    a_teacher,
    dies,
    fresh,
    labelled,
    same,
    trained,
)
from tests.support.ranks import on_ranks
from tests.support.signals import signalling
from tests.support.tiny import CPU, NETWORK, quiet


@pytest.mark.parametrize("together", [1, 2])
def test_an_evaluation_sees_the_images_that_were_labelled_and_learns_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    teacher, said = Recorded(), list[str]()
    labels = labelled(tmp_path / "labels", teacher)
    seeds = [seed_of(0, "evaluation", k) for k in range(2)]
    plain = fresh(*seeds)
    trained(labels, labels, plain)

    seen, learnt, call, loss = list[Tensor](), list[Tensor](), Stack.__call__, teaching.soft_loss

    def watched_call(stack: Stack, images: Tensor) -> Tensor:
        if stack.network.training:
            seen.append(images.clone())
        return call(stack, images)

    def watched_loss(found: Tensor, logits: Tensor, *others: Any) -> Tensor:
        learnt.append(logits.view(together, -1, 3))
        return loss(found, logits, *others)

    monkeypatch.setattr(Stack, "__call__", watched_call)
    monkeypatch.setattr(teaching, "soft_loss", watched_loss)
    (found,) = evaluate_set(SET, DATASET, NETWORK, repeats=2, teacher=labels, device="cpu",
                            together=together, say=said.append)  # fmt: skip
    expected = torch.cat([labels.of_epoch(epoch) for epoch in range(3)]).float()
    for of_network in torch.cat(seen, 1).view(2, 27, 1, 8, 8):
        assert torch.equal(of_network, torch.cat(teacher.saw))
    for of_network in torch.cat(learnt, 1).view(2, 27, 3):
        assert torch.equal(of_network, expected)
    assert found.accuracies == tuple(plain.accuracy(DATASET.batches(DATASET.test, CPU)))
    assert found.recipe == replace(STUDENT_RECIPE, epochs=3, batch_size=4, precision="float32")
    assert f"soft labels of {labels.path} (KL at temperature 20)" in said[0]


@pytest.mark.parametrize("networks", [1, 2])
def test_training_sees_the_images_that_were_labelled_and_learns_their_labels(
    tmp_path: Path, networks: int
) -> None:
    teacher, seen, learnt = Recorded(), [], []
    labels = labelled(tmp_path / "labels", teacher)

    def objective(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
        seen.append(images)
        learnt.append(targets)
        return stack(images).sum()

    recipe, strategy = recipe_of({}, taught=labels.draws), Strategy.parse("all:zoom_flip")
    epochs = draw_epochs([labels.seed or 0] * networks, 9, recipe, strategy)
    stack = fresh(*range(networks))
    stack.images_per_chunk = len  # type: ignore[method-assign,assignment]
    train(stack, SET.images, SET.labels, recipe, strategy, epochs, objective=objective,
          teach=labels)  # fmt: skip
    assert len(seen) == len(teacher.saw) == 3 * LONGEST
    again = Recorded()
    for images, targets, saw in zip(seen, learnt, teacher.saw, strict=True):
        for of_network, of_targets in zip(images, targets, strict=True):
            assert torch.equal(of_network, saw)
            assert torch.equal(of_targets[:, 0], again(saw))
            assert of_targets[:, 1].sum(1).allclose(torch.ones(len(saw)))


def test_training_by_the_file_is_training_with_the_teacher_in_the_loop(labels_file: Path) -> None:
    labels, by_file, in_loop = SoftLabels.load(labels_file), fresh(1, 2), fresh(1, 2)
    trained(labels, labels, by_file)
    trained(labels, TeacherNetworks([Recorded()]), in_loop)
    assert same(by_file, in_loop)
    assert not same(by_file, fresh(1, 2), 1e-3)


def test_labels_of_any_teacher_are_its_logits_but_for_rounding(tmp_path: Path) -> None:
    teachers = [a_teacher(k, dtype=torch.float32) for k in range(2)]
    labels = labelled(tmp_path / "labels", *teachers)
    by_file, in_loop = fresh(), fresh()
    trained(labels, labels, by_file)
    trained(labels, TeacherNetworks(teachers), in_loop)
    assert same(by_file, in_loop, 1e-4)


def evaluated_on_rank(folder: Path) -> None:
    evaluation = partial(evaluate_set, SET, DATASET, NETWORK, repeats=2, device="cpu", say=quiet)
    (found,) = evaluation(teacher=SoftLabels.load(folder / "labels"))
    (folder / f"accuracies {ranks.number()}").write_text(str(found.accuracies))
    own = TeacherNetworks([a_teacher(ranks.number(), dtype=torch.float32)])
    with pytest.raises(ValueError, match="teacher: expected the same on all ranks, got "):
        evaluation(teacher=own)


def test_ranks_share_networks_that_learn_the_labels_of_one_file(
    tmp_path: Path, labels_file: Path
) -> None:
    shutil.copy(labels_file, tmp_path / "labels")
    on_ranks(2, evaluated_on_rank, tmp_path, tmp_path)
    (alone,) = evaluate_set(SET, DATASET, NETWORK, repeats=2, teacher=SoftLabels.load(labels_file),
                            device="cpu", say=quiet)  # fmt: skip
    for rank in range(2):
        assert (tmp_path / f"accuracies {rank}").read_text() == str(alone.accuracies)


@pytest.mark.parametrize("at", [1, LONGEST, 2 * LONGEST - 1])
def test_training_by_soft_labels_goes_on_to_the_same_bits(
    tmp_path: Path, labels_file: Path, at: int
) -> None:
    whole, cut, again = fresh(), fresh(), fresh()
    labels = SoftLabels.load(labels_file)
    trained(labels, labels, whole)
    came_to = trained(labels, labels, cut, stop=at)
    assert came_to is not None
    TrainingFile(tmp_path / "file", {}).save(cut, came_to)
    done = TrainingFile(tmp_path / "file", {}).restore(again)
    assert trained(labels, SoftLabels.load(labels_file), again, done) is None
    assert same(whole, again)


def evaluated(path: Path, labels: SoftLabels, *, resume: bool = False) -> list[str]:
    said: list[str] = []
    about = {"command": "the command", "versions": {}}
    file = EvaluationFile(path, {"dataset": "tiny", "seed": 0}, about, resume=resume)
    store = file.of(f"the set, {labels.about}", SET, labels)
    evaluate_set(SET, DATASET, NETWORK, repeats=2, teacher=labels, store=store, device="cpu",
                 say=said.append)  # fmt: skip
    return said


def test_an_evaluation_that_a_signal_stopped_goes_on_by_the_same_labels_alone(
    tmp_path: Path, labels_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "labels"
    shutil.copy(labels_file, there)
    evaluated(tmp_path / "whole", SoftLabels.load(there))
    for name in ("cut", "other"):
        with monkeypatch.context() as patch:
            patch.setattr(Stack, "__call__", signalling(Stack.__call__, 5, signal.SIGINT))
            with pytest.raises(Interrupted):
                evaluated(tmp_path / name, SoftLabels.load(there))
    said = evaluated(tmp_path / "cut", SoftLabels.load(there), resume=True)
    assert said[1] == f"network 1 of 2 ({NETWORK}): going on in epoch 2"
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    there.unlink()
    said = evaluated(tmp_path / "other", labelled(there, seed=9), resume=True)
    assert "going on" not in " ".join(said)  # what had learned other labels begins anew


def test_an_evaluation_that_is_killed_goes_on_to_the_same_file(
    tmp_path: Path, labels_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, killed = SoftLabels.load(labels_file), tmp_path / "killed"
    evaluated(tmp_path / "whole", labels)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "__call__", signalling(Stack.__call__, 15, signal.SIGKILL))
        dies(lambda: evaluated(killed, labels))
    kept = json.loads(killed.read_text())["results"][0]["evaluations"][0]["accuracies"]
    assert len(kept) == 1
    evaluated(killed, SoftLabels.load(labels_file), resume=True)
    assert killed.read_bytes() == (tmp_path / "whole").read_bytes()
