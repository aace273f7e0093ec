from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.plain.inputs import random_dataset
from cmidd.methods.mtt import MTT
from cmidd.options.pretrained import ExpertOptions
from cmidd.pretrained.experts import KIND, Experts, train_experts
from cmidd.storage.tensor_file import write_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.mtt_cases import (
    NETWORK,
    REAL,
    SEED,
    images_of,
    labels_of,
    options_of,
    ours,
)
from tests.support.steps import step
from tests.support.tiny import CPU, quiet


def test_learning_brings_the_student_nearer_to_the_expert(experts: Path) -> None:
    loop = ours(experts, soft_labels=True, max_start_epoch=1, lr_step_size=1e-3, lr_labels=0.1)
    images = images_of().requires_grad_()
    learned = [{"params": [each.tensor], "lr": each.lr} for each in loop.extra_parameters.values()]
    optimizer = torch.optim.SGD([{"params": [images], "lr": 2.0}, *learned])
    losses = []
    for _ in range(30):
        loss, images.grad = step(loop, images, 0)
        losses.append(loss.item())
        optimizer.step()
        loop.constrain()
    assert losses[-1] < 0.95 * losses[0]


def test_the_step_size_starts_as_told_or_as_the_experts_had_it(experts: Path) -> None:
    assert ours(experts).step_size.item() == 0.05
    assert ours(experts, step_size=0.25).log_values() == {"step_size": 0.25}
    assert ours(experts).extra_parameters["step_size"].lr == 1e-5


@pytest.mark.parametrize(
    ("moved_to", "kept"), [(0.3, 0.3), (0.2, 0.2), (0.01, 0.1), (-5.0, 0.1), (0.0, 0.1)]
)
def test_an_update_at_most_halves_the_step_size(
    moved_to: float, kept: float, experts: Path
) -> None:
    loop = ours(experts, step_size=0.2)
    step(loop, images_of(), 0)
    with torch.no_grad():
        loop.step_size.fill_(moved_to)
    loop.constrain()
    assert loop.step_size.item() == pytest.approx(kept)


def test_half_of_a_restored_step_size_is_its_bound(experts: Path) -> None:
    loop = ours(experts, step_size=0.2)
    with torch.no_grad():
        loop.step_size.fill_(0.02)  # as a checkpoint does
    step(loop, images_of(), 0)
    with torch.no_grad():
        loop.step_size.fill_(-1)
    loop.constrain()
    assert loop.step_size.item() == pytest.approx(0.01)


def test_a_step_size_that_is_nan_stays_so(experts: Path) -> None:
    loop = ours(experts)
    step(loop, images_of(), 0)
    with torch.no_grad():
        loop.step_size.fill_(torch.nan)
    loop.constrain()
    assert loop.step_size.isnan()


def made() -> SyntheticSet:
    return SyntheticSet.of(
        random_dataset(REAL, 16), images_of(dtype=torch.float32), labels_of(), {"ipc": 2}
    )


def test_the_result_has_the_learned_step_size(experts: Path) -> None:
    before = made()
    finished = ours(experts).finish(before)
    assert finished.learned_lr == pytest.approx(0.05)
    assert finished.record["ipc"] == 2
    assert "learned_lr" not in before.record
    assert finished.soft_labels is None


def test_the_result_has_soft_labels_that_can_be_saved(experts: Path, tmp_path: Path) -> None:
    loop = ours(experts, soft_labels=True)
    finished = loop.finish(made())
    soft_labels = finished.soft_labels
    assert soft_labels is not None
    assert soft_labels.dtype == torch.float32
    torch.testing.assert_close(soft_labels.sum(dim=1), torch.ones(10))
    torch.testing.assert_close(soft_labels[torch.arange(10), labels_of()], torch.full((10,), 0.9))
    assert soft_labels.min() == pytest.approx(0.1 / (len(REAL) - 1))
    finished.save(tmp_path / "set")
    assert torch.equal(SyntheticSet.load(tmp_path / "set").targets, soft_labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_steps": 0}, "student_steps: expected at least 1, got 0"),
        ({"student_steps": None}, "student_steps: expected a whole number from 1 on, got None"),
        ({"expert_epochs": 0}, "expert_epochs: expected at least 1, got 0"),
        ({"max_start_epoch": 0}, "max_start_epoch: expected at least 1, got 0"),
        ({"batch_syn": 0}, "batch_syn: expected at least 1, got 0"),
        ({"step_size": 0.0}, "step_size: expected more than 0, got 0"),
        ({"step_size": float("nan")}, "step_size: expected more than 0, got nan"),
        ({"lr_step_size": None}, "lr_step_size: expected at least 0, got None"),
        ({"lr_step_size": -1.0}, "lr_step_size: expected at least 0, got -1"),
        ({"soft_labels": True, "lr_labels": -1.0}, "lr_labels: expected at least 0, got -1"),
        ({"lr_labels": 1.0}, "lr_labels: expected soft_labels, which it is the learning rate of"),
        ({"augmentation": "blur"}, "augmentation: no operation 'blur'"),
        ({"expert_epochs": 2}, "max_start_epoch - 1 .* at most 3, the epochs in .*, got 4"),
        ({"max_start_epoch": 4}, "max_start_epoch - 1 .* at most 3, the epochs in .*, got 4"),
    ],
)
def test_wrong_options_are_named(changes: dict[str, Any], message: str, experts: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ours(experts, **changes)


def test_experts_of_other_images_are_refused(experts: Path) -> None:
    dataset = replace(random_dataset(REAL, 16), mean=(0.4,) * 3)
    with pytest.raises(ValueError, match=r"experts: .*expected mean"):
        MTT(dataset, labels_of(), options_of(experts), SEED, CPU)


def test_a_missing_file_of_experts_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ours(tmp_path / "nowhere")


def test_networks_with_batch_norm_are_refused(experts: Path, tmp_path: Path) -> None:
    record = {**Experts.load(experts).record, "network": f"{NETWORK},norm=batch"}
    write_tensors(tmp_path / "experts", KIND, {}, record)
    with pytest.raises(ValueError, match="network: expected one whose state is parameters alone"):
        ours(tmp_path / "experts")


def test_an_expert_that_did_not_move_is_named(
    experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = ours(experts)
    still = loop.experts.parameters(0, 0)
    monkeypatch.setattr(Experts, "parameters", lambda *_: still)
    with pytest.raises(ValueError, match=r"expected networks that move, .* has the same weights"):
        step(loop, images_of(), 0)


def test_a_student_on_all_real_images_walks_in_the_experts_steps(tmp_path: Path) -> None:
    dataset = random_dataset(REAL, 16)
    count = len(dataset.train)
    options = ExpertOptions(
        NETWORK, experts=1, epochs=3, lr=0.05, batch_size=count, augmentation="none"
    )
    train_experts(tmp_path / "experts", dataset, options, CPU, say=quiet)
    given = options_of(
        tmp_path / "experts", student_steps=2, expert_epochs=2, max_start_epoch=2,
        augmentation="none",
    )  # fmt: skip
    loop = MTT(dataset, dataset.train.labels, given, SEED, CPU)
    for iteration in range(4):
        loss, _ = step(loop, dataset.to_input(dataset.train.images), iteration)
        assert loss < 1e-8
