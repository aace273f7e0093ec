"""What the loop does with a method of several updates that learns more than images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cmidd.cli.costs import Cost, duration, estimate
from cmidd.first_images import first_images
from cmidd.loop import distill
from cmidd.methods import METHODS, MethodEntry, Published
from cmidd.methods.base import ExtraParameter, Method
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import Options
from cmidd.regularization import CMITerm
from cmidd.run import Run, prepare
from cmidd.storage.run_folder import RunFolder, read_log
from cmidd.synthetic import SyntheticSet
from tests.support.tiny import (
    CONFIG,
    CPU,
    DSA_OPTIONS,
    mtt_options,
    quiet,
    tiny_dataset,
    tiny_experts,
    tiny_run,
)

DATASET = tiny_dataset()
OPTIONS = DistillOptions(
    ipc=2, iterations=6, lr_images=0.1, report_every=2, checkpoint_every=4, momentum=0.5
)
UPDATES = 3


@dataclass(frozen=True)
class PullOptions(Options):
    """Of the method below."""


class Pull(Method):
    """Pulls images to a multiple of the iteration's number, and a scale to the update's."""

    updates = UPDATES
    network_spec = "mlp"

    def __init__(self, *_: Any) -> None:
        self.scale = torch.ones(1, requires_grad=True)
        self.steps: list[tuple[int, int]] = []

    @property
    def extra_parameters(self) -> dict[str, ExtraParameter]:
        return {"scale": ExtraParameter(self.scale, 0.5)}

    def loss_and_gradient(self, images: Tensor, draws: tuple[int, int]) -> tuple[Tensor, Tensor]:
        iteration, update = draws
        self.steps.append((iteration, update))
        self.scale.grad = self.scale.detach() - update
        loss = (images.detach() - iteration).square().sum() / 2
        return loss, images.detach() - iteration

    def constrain(self) -> None:
        with torch.no_grad():
            self.scale.clamp_(max=1.3)

    def first_batch(self, iteration: int) -> Tensor | None:
        return torch.tensor([0, 1, 5] if iteration % 2 else [2, 3])

    def log_values(self) -> dict[str, Tensor]:
        return {"scale": self.scale.detach()}

    def finish(self, result: SyntheticSet) -> SyntheticSet:
        return replace(result, record={**result.record, "scale": self.scale.item()})


@pytest.fixture(autouse=True)
def method(monkeypatch: pytest.MonkeyPatch) -> list[Pull]:
    """The method in the table, and all that were made of it."""
    made: list[Pull] = []

    def make(*arguments: Any) -> Pull:
        made.append(Pull(*arguments))
        return made[-1]

    entry = MethodEntry(make, PullOptions, lambda *_: Published(loop={"init": "real"}))
    monkeypatch.setitem(METHODS, "pull", entry)
    return made


def run(path: Path, cmi: CMIOptions | None = None, *, resume: bool = False) -> SyntheticSet:
    return distill(prepared(cmi), RunFolder(path, CONFIG, resume=resume), say=quiet)


def prepared(cmi: CMIOptions | None, say: Callable[[str], None] = quiet) -> Run:
    return prepare("pull", DATASET, OPTIONS, PullOptions(), cmi, device=CPU, say=say)


def by_hand() -> tuple[Tensor, list[float], list[float]]:
    """Images at the end, the mean loss of each iteration and the scale after it."""
    images, _ = first_images(DATASET, 2, "real", 0)
    velocity, scale, scale_velocity = torch.zeros_like(images), 1.0, 0.0
    losses, scales = [], []
    for iteration in range(6):
        of_updates = []
        for update in range(UPDATES):
            of_updates.append(float((images - iteration).square().sum() / 2))
            velocity = 0.5 * velocity + images - iteration
            images = images - 0.1 * velocity
            scale_velocity = 0.5 * scale_velocity + scale - update
            scale = min(scale - 0.5 * scale_velocity, 1.3)
        losses.append(sum(of_updates) / UPDATES)
        scales.append(scale)
    return images, losses, scales


def test_every_update_moves_images_and_what_is_learned(tmp_path: Path, method: list[Pull]) -> None:
    result = run(tmp_path)
    images, losses, scales = by_hand()
    torch.testing.assert_close(result.images, images, rtol=1e-4, atol=1e-5)
    assert result.record["scale"] == pytest.approx(scales[-1], rel=1e-4)
    assert 1.3 in scales
    assert method[0].steps == [(i, u) for i in range(6) for u in range(UPDATES)]
    log = read_log(tmp_path / "log.jsonl")
    assert [line["loss"] for line in log] == pytest.approx(losses[1::2], rel=1e-4)
    assert [line["scale"] for line in log] == pytest.approx(scales[1::2], rel=1e-4)


def test_a_stopped_run_goes_on_with_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    matched = Pull.loss_and_gradient

    def stopping(self: Pull, images: Tensor, draws: tuple[int, int]) -> tuple[Tensor, Tensor]:
        if draws == (5, 1):
            raise KeyboardInterrupt
        return matched(self, images, draws)

    with monkeypatch.context() as patch:
        patch.setattr(Pull, "loss_and_gradient", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    result = run(tmp_path / "cut", resume=True)
    for name in ("result.safetensors", "log.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert result.record["scale"] == whole.record["scale"]


def test_what_is_learned_and_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pull, "constrain", lambda self: self.scale.detach().fill_(torch.nan))
    message = r"iteration 1: .*largest of scale nan.* smaller lr_images or lr_scale, and another"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path)


def test_cmi_is_of_all_images_or_of_the_iterations_batch_by_one_network(
    tmp_path: Path, cmi: CMIOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Sequence[int], int]] = []
    call = CMITerm.add

    def noting(self: Any, images: Tensor, *rest: Any, logged: bool) -> Tensor:
        regularizer = self._regularizer

        def noted(chosen: Tensor, classes: Any, *, step: int) -> Tensor:
            seen.append((step, classes.labels.tolist(), len(chosen)))
            value: Tensor = regularizer(chosen, classes, step=step)
            return value

        noted.centroids = regularizer.centroids  # type: ignore[attr-defined]
        self._regularizer = noted
        value = call(self, images, *rest, logged=logged)
        self._regularizer = regularizer
        return value

    monkeypatch.setattr(CMITerm, "add", noting)
    everything, odd, even = [0, 0, 1, 1, 2, 2], [0, 0, 2], [1, 1]
    for cmi_on in ("all", "batch"):
        run(tmp_path / cmi_on, replace(cmi, cmi_on=cmi_on))
        expected = [
            (i, everything if cmi_on == "all" else odd if i % 2 else even)
            for i in range(6)
            for _ in range(UPDATES)
        ]
        assert [(step, labels) for step, labels, _ in seen] == expected
        assert [count for *_, count in seen] == [len(labels) for _, labels in expected]
        seen.clear()
    run(tmp_path / "seldom", replace(cmi, cmi_every=4))
    # In iterations without it, once for a line of the log, of the last that had it.
    assert [step for step, *_ in seen] == [0, 0, 0, 0, 0, 4, 4, 4, 4]


def test_cmi_of_a_batch_needs_a_method_that_has_such(
    tmp_path: Path, cmi: CMIOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pull, "first_batch", lambda *_: None)
    message = r"cmi_on: batch is for .* fewer than all \(as batch_syn says\)"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, replace(cmi, cmi_on="batch"))


@pytest.mark.parametrize(
    ("rows", "centroids", "told"),
    [([0, 2, 4], "own", "3 of the 3"), ([0, 1, 2, 4], "own", ""), ([0, 2, 4], "real", "")],
)
def test_a_batch_in_which_images_are_alone_is_told(
    rows: list[int],
    centroids: str,
    told: str,
    tmp_path: Path,
    cmi: CMIOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pull, "first_batch", lambda *_: torch.tensor(rows))
    said: list[str] = []
    given = replace(cmi, cmi_on="batch", cmi_centroids=centroids)
    prepared(given, said.append)
    found = [text for text in said if text.startswith("cmi_on batch: ")]
    assert len(found) == bool(told)
    assert not told or f"{told} images of the first batch are the only ones" in found[0]


def test_a_set_remembers_the_network_that_it_was_made_for(tmp_path: Path) -> None:
    assert run(tmp_path).record["network"] == "mlp"


def test_an_estimate_counts_every_update_and_iteration(
    method: list[Pull], cmi: CMIOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 100.0, 200.0, 300.0, 303.0, 304.0, 400.0, 407.0, 409.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    given = replace(cmi, cmi_every=2)
    cost = estimate(prepared(given))
    assert method[0].steps == [(0, 0), (0, 0), (0, 1)]
    assert cost.seconds == 3 + 2 * 7 + UPDATES * 1 / 2
    assert cost.iterations == 6
    assert cost.memory > 10e6
    assert 3 * 6 * 64 * 4 < cost.disk < 10e3


@pytest.mark.parametrize("name", ["dsa", "mtt"])
def test_an_estimate_leaves_the_run_as_it_would_have_been(
    name: str, tmp_path: Path, cmi: CMIOptions
) -> None:
    options: Any = DSA_OPTIONS
    if name == "mtt":
        tiny_experts(tmp_path / "experts", DATASET)
        options = mtt_options(tmp_path / "experts")
    given = replace(OPTIONS, iterations=2)
    state = torch.get_rng_state()
    expected = tiny_run(tmp_path / "a", given, cmi, method=(name, options))
    run = prepare(name, DATASET, given, options, cmi, device=CPU, say=quiet)
    assert estimate(run).iterations == 2
    assert torch.equal(torch.get_rng_state(), state)
    again = distill(run, RunFolder(tmp_path / "b", CONFIG, resume=False), say=quiet)
    assert torch.equal(again.images, expected.images)


def test_costs_are_for_people() -> None:
    text = "about 2.5 s an iteration, 42 min for 1,000; memory 1.24GB, disk 12.3kB"
    assert str(Cost(2.5, 1000, 1_240_000_000, 12_345)) == text
    assert [duration(s) for s in (0.012, 119, 120, 7200, 400_000)] == [
        "0.012 s", "119 s", "2 min", "2 h", "4.6 days",
    ]  # fmt: skip
