"""Which labels a set is given, and how their file is filled."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cmidd import ranks
from cmidd.augment import Strategy, augment
from cmidd.augment_operations import Amounts
from cmidd.interruption import Interrupted
from cmidd.options.recipe import recipe_of
from cmidd.relabelling import Relabelling, relabel
from cmidd.storage.output import in_words
from cmidd.training_draws import draw_epoch
from tests.support.labels import (
    DATASET,
    LONGEST,
    OPTIONS,
    SET,
    Recorded,
    a_teacher,
    dies,
    labelled,
    work,
)
from tests.support.ranks import on_ranks
from tests.support.tiny import CPU, quiet


@pytest.mark.parametrize("zoom", [0.08, 0.5])
def test_labels_are_the_teachers_logits_on_the_images_that_are_drawn(
    tmp_path: Path, zoom: float
) -> None:
    """Images by hand: rows, then augmentation, then a rectangle pixel by pixel."""
    labels, teacher = labelled(tmp_path / "labels", zoom=zoom), Recorded()
    recipe, strategy = recipe_of({}, taught=labels.draws), Strategy.parse("all:zoom_flip")
    boxes = 0
    for epoch in range(3):
        drawn = draw_epoch([labels.seed or 0], 9, recipe, strategy, epoch)
        assert sorted(drawn.order[0].tolist()) == list(range(9))
        for step, rows in enumerate(torch.split(drawn.order[0], 4)):
            changes, amounts = drawn.augmentation[step], Amounts(zoom=zoom)
            images = augment(SET.images[rows], strategy, changes, amounts=amounts)
            (u, down, right), mixed = drawn.mixing[step].numbers[0].tolist(), images.clone()
            half = int(8 * (1 - u) ** 0.5) // 2
            for row in range(max(int(down * 8) - half, 0), min(int(down * 8) + half, 8)):
                for column in range(max(int(right * 8) - half, 0), min(int(right * 8) + half, 8)):
                    boxes += 1
                    for k, partner in enumerate(drawn.mixing[step].partners[0].tolist()):
                        mixed[k, :, row, column] = images[partner, :, row, column]
            expected = teacher(mixed).half()
            assert torch.equal(labels.of_epoch(epoch)[4 * step : 4 * step + 4], expected)
    assert boxes > 9


def test_the_size_that_is_told_is_that_on_disk(tmp_path: Path) -> None:
    said: list[str] = []
    made, path = work(), tmp_path / "labels"
    labels = relabel(path, made, command="the command", say=said.append)
    assert made.size("the command") == path.stat().st_size == labels.nbytes
    assert f"{path} takes {in_words(labels.nbytes)} (" in said[0]
    assert load_file(path)["logits"].shape == (3, 9, 3)
    assert load_file(path)["logits"].dtype == torch.float16


def test_labels_for_which_there_is_no_room_are_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=500))
    with pytest.raises(ValueError, match=r"out: .*labels takes .*has 500B free; lower epochs"):
        labelled(tmp_path / "labels")
    assert not list(tmp_path.iterdir())


def test_more_epochs_are_the_labels_of_a_longer_file(tmp_path: Path, labels_file: Path) -> None:
    more, whole = tmp_path / "more", tmp_path / "whole"
    shutil.copy(labels_file, more)
    labelled(more, epochs=5, resume=True)
    labelled(whole, epochs=5)
    assert more.read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match=r"resume: .*\(epochs: 5 there, 3 now, which is fewer"):
        labelled(more, resume=True)
    with pytest.raises(ValueError, match=r"resume: .*\(seed: 7 there, 8 now\); give the same ones"):
        labelled(more, epochs=5, seed=8, resume=True)
    with pytest.raises(ValueError, match=r"resume: .*\(teachers: .* there"):
        labelled(more, a_teacher(1, dtype=torch.float32), epochs=5, resume=True)


@pytest.mark.parametrize("step", [1, LONGEST + 1, 2 * LONGEST + 2, 3 * LONGEST])
def test_labelling_that_is_killed_goes_on_to_the_same_bytes(
    tmp_path: Path, labels_file: Path, step: int
) -> None:
    def die(count: int) -> None:
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = tmp_path / "labels"
    dies(lambda: labelled(killed, Recorded(die)))
    assert not killed.exists()
    teacher = Recorded()
    labelled(killed, teacher, resume=True)
    assert killed.read_bytes() == labels_file.read_bytes()
    assert len(teacher.saw) == 3 * LONGEST - (step - 1) // LONGEST * LONGEST


def interrupted_at(step: int) -> Recorded:
    """A teacher that a signal interrupts in a step."""

    def interrupt(count: int) -> None:
        if count == step:
            signal.raise_signal(signal.SIGINT)

    return Recorded(interrupt)


@pytest.mark.parametrize(("step", "there"), [(LONGEST - 1, 0), (LONGEST, 1), (LONGEST + 1, 1)])
def test_a_signal_loses_the_epoch_under_way_at_most(
    tmp_path: Path, labels_file: Path, step: int, there: int
) -> None:
    stopped, teacher = tmp_path / "labels", interrupted_at(step)
    with pytest.raises(Interrupted, match=f"interrupted after {there} of 3 epochs"):
        labelled(stopped, teacher)
    assert len(teacher.saw) == step
    said: list[str] = []
    relabel(stopped, work(), resume=True, say=said.append)
    assert (said[0] == f"{there} of 3 epochs are there already") == (there > 0)
    assert stopped.read_bytes() == labels_file.read_bytes()


def test_a_signal_ends_labelling_after_an_epoch_of_one_step(tmp_path: Path) -> None:
    stopped, whole, teacher = tmp_path / "labels", tmp_path / "whole", interrupted_at(2)
    with pytest.raises(Interrupted, match="interrupted after 2 of 3 epochs"):
        labelled(stopped, teacher, batch_size=100)
    assert len(teacher.saw) == 2
    labelled(stopped, batch_size=100, resume=True)
    labelled(whole, batch_size=100)
    assert stopped.read_bytes() == whole.read_bytes()


def on_rank(folder: Path) -> None:
    teacher = Recorded()
    labelled(folder / "labels", teacher)
    assert len(teacher.saw) == LONGEST * (2 - ranks.number())


def test_ranks_share_the_epochs(tmp_path: Path, labels_file: Path) -> None:
    on_ranks(2, on_rank, tmp_path, tmp_path)
    assert (tmp_path / "labels").read_bytes() == labels_file.read_bytes()


def test_logits_that_float16_does_not_hold_are_an_error(tmp_path: Path) -> None:
    teacher = a_teacher(0, dtype=torch.float32)
    teacher.head.weight.data *= 1e6
    with pytest.raises(
        FloatingPointError, match=r"logits that are finite in float16, got .*epoch 1"
    ):
        labelled(tmp_path / "labels", teacher)
    with pytest.raises(ValueError, match=r"expected logits of 3 classes, got \(4, 8\) of 4 images"):
        labelled(tmp_path / "others", nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).eval())


@pytest.mark.parametrize("wrong", [{"cutmix": 2.0}, {"zoom": 2.0}])
def test_options_that_no_file_may_say_label_nothing(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name}: expected a .* got 2"):
        work(replace(OPTIONS, **wrong))


def test_labels_of_fewer_epochs_than_a_record_warms_up_for(tmp_path: Path) -> None:
    evaluation = {"soft_loss": "kl", "epochs": 100, "schedule": "cosine", "warm_up": 5}
    warm = replace(SET, record={**SET.record, "evaluation": evaluation})
    made = Relabelling(warm, DATASET, [Recorded()], OPTIONS, CPU)
    labels = relabel(tmp_path / "labels", made, say=quiet)
    assert labels.draws["epochs"] == 3
