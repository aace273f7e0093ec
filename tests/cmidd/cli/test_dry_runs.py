"""What pretrain, experts and evaluate say of their cost, without doing anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from cmidd.cli import main, training_costs
from cmidd.cli.training_costs import estimate_training
from cmidd.options.recipe import Recipe
from tests.support.replaying import replayed
from tests.support.tiny import CPU, NETWORK, tiny_dataset

SMALL = ["--network=convnet:width=8,depth=1", "--device=cpu"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["pretrain", *SMALL, "--networks=3", "--epochs=2"],
            ["3 x convnet:width=8,depth=1: about .* a step, .* for 12 steps of each"],
        ),
        (
            ["experts", *SMALL, "--experts=3", "--epochs=2", "--lr=0.1", "--batch_size=100"],
            ["3 x convnet:width=8,depth=1: about .* a step, .* for 30 steps of each"],
        ),
        (
            ["evaluate", "--random_real=2", "--all_real", "--networks", "mlp", "mlp:width=4",
             "--all_real_epochs=2", "--epochs=7", "--repeats=4", "--device=cpu"],
            [
                "random real images, 2 per class: 4 x mlp: about .* a step, .* for 7 steps of each",
                "random real images, 2 per class: 4 x mlp:width=4: about .* for 7 steps of each",
                "all real images: 4 x mlp: about .* for 12 steps of each",
                "all real images: 4 x mlp:width=4: about .* for 12 steps of each",
            ],
        ),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_all_would_cost_and_writes_nothing(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    main([*words, "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said) + 1
    for line, expected in zip(lines, said, strict=False):
        assert re.fullmatch(expected, line)
    assert re.fullmatch(r"about .* in all; memory \S+B, disk \S+B", lines[-1])
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["pretrain", "--network=mlp", "--networks=3"], "runs/bank.safetensors"),
        (["experts", "--network=mlp", "--experts=2"], "runs/experts.safetensors"),
    ],
)
def test_the_disk_of_a_dry_run_is_what_the_file_takes(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], words: list[str], path: str
) -> None:
    main([*words, "--epochs=1", "--device=cpu", "--dry_run"])
    said = re.search(r"disk (\S+)kB", capsys.readouterr().out)
    assert said is not None
    main([*words, "--epochs=1", "--device=cpu"])
    assert Path(path).stat().st_size / 1000 == pytest.approx(float(said[1]), rel=0.02)


def test_the_time_is_that_of_all_epochs_and_tests_of_all_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks: Iterator[int] = count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    data = tiny_dataset()  # 18 images
    recipe = Recipe(epochs=10, batch_size=7, augmentation="color")  # 3 steps an epoch, 2 are tried
    images = data.to_input(data.train.images)
    cost = estimate_training(NETWORK, images, data.train.labels, data, recipe, 5, together=2)
    assert (cost.networks, cost.steps, cost.step) == (5, 30, 1.0)
    draw, test = 1 / 2, 1.0  # seconds of an epoch's draws, of the one batch of test images
    assert cost.seconds == 3 * (10 * (draw + 3 * 1.0) + test)
    assert cost.memory > 2**20


def test_where_steps_are_captured_those_that_are_done_again_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs, ticks, made = replayed(monkeypatch), [0.0], [0]

    def tick() -> float:  # a step that is done again takes 1 s, and one before it 100
        again = graphs.replays > max(graphs.captures, made[0])
        made[0], ticks[0] = max(graphs.replays, made[0]), ticks[0] + (1 if again else 100)
        return ticks[0]

    monkeypatch.setattr("time.perf_counter", tick)
    data, recipe = tiny_dataset(), Recipe(epochs=10, batch_size=18)
    images = data.to_input(data.train.images)
    cost = estimate_training(NETWORK, images, data.train.labels, data, recipe, 1, together=None)
    assert (graphs.captures, graphs.replays) == (1, 4)
    assert cost.step == 1.0


def test_a_slow_step_is_tried_twice_and_a_single_one_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks: Iterator[int] = count(step=10)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    clock = training_costs._Clock(CPU)
    assert [clock(), clock()] == [False, True]
    assert clock.step() == 10.0
    data = tiny_dataset()
    images = data.to_input(data.train.images)
    labels = torch.nn.functional.one_hot(data.train.labels).float()
    cost = estimate_training("mlp", images, labels, data, Recipe(epochs=1), 1, together=None)
    assert (cost.steps, cost.step) == (1, 10.0)
