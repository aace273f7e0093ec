from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from bench.plain.mtt import PlainMTT, PlainStep
from cmidd.methods import mtt
from cmidd.methods.mtt import MTT
from tests.support.compare import relative_error
from tests.support.mtt_cases import (
    DSA,
    EPOCHS,
    ITERATION,
    NETWORK,
    REAL,
    SEED,
    images_of,
    labels_of,
    options_of,
    ours,
)
from tests.support.steps import step
from tests.support.tiny import CPU

Trained = Callable[[str], Path]


def plain(experts: Path, ipc: int = 2, **changes: Any) -> PlainMTT:
    options = options_of(experts, **changes)
    labels = labels_of(ipc)
    return PlainMTT(random_dataset(REAL, 16), labels, options, SEED, CPU, torch.float64)


def assert_same(
    loop: MTT, result: tuple[Tensor, Tensor], expected: PlainStep, tolerance: float = 1e-10
) -> None:
    loss, gradient = result
    assert loop.step_size.grad is not None
    assert relative_error(loss, expected.loss) < tolerance
    assert relative_error(gradient, expected.images) < tolerance
    assert relative_error(loop.step_size.grad, expected.step_size) < tolerance
    if expected.labels is not None:
        of_labels = loop.extra_parameters["labels"].tensor.grad
        assert of_labels is not None
        assert relative_error(of_labels, expected.labels) < tolerance


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("augmentation", ["none", DSA])
@pytest.mark.parametrize("batch_syn", [None, 4])
@pytest.mark.parametrize("soft_labels", [False, True])
def test_a_step_is_that_of_the_unrolled_graph(
    steps: int, augmentation: str, batch_syn: int | None, soft_labels: bool, experts: Path
) -> None:
    changes: dict[str, Any] = {
        "student_steps": steps,
        "augmentation": augmentation,
        "batch_syn": batch_syn,
        "soft_labels": soft_labels,
    }
    loop = ours(experts, **changes)
    expected = plain(experts, **changes).step(images_of(), ITERATION)
    assert_same(loop, step(loop, images_of(), ITERATION), expected)


@pytest.mark.parametrize("norm", ["none", "group", "layer"])
def test_other_norms_are_those_of_the_unrolled_graph(norm: str, trained: Trained) -> None:
    path = trained(f"{NETWORK},norm={norm}")
    loop = ours(path, student_steps=5)
    assert_same(
        loop,
        step(loop, images_of(), ITERATION),
        plain(path, student_steps=5).step(images_of(), ITERATION),
    )


def test_random_and_trained_starts_are_those_of_the_unrolled_graph(experts: Path) -> None:
    loop, rival = ours(experts), plain(experts)
    first = {k: loop.experts.parameters(k, 0).double() for k in range(2)}
    random = []
    for iteration in range(8):
        draws = loop.draw(iteration, 0)
        start, _ = loop.window(draws.expert, draws.epoch)
        random.append(any(torch.equal(start, weights) for weights in first.values()))
        assert_same(loop, step(loop, images_of(), iteration), rival.step(images_of(), iteration))
    assert {True, False} == set(random)


def test_all_operations_in_turn_are_those_of_the_unrolled_graph(experts: Path) -> None:
    loop, rival = (make(experts, augmentation=f"all:{DSA}") for make in (ours, plain))
    assert isinstance(loop, MTT)
    assert isinstance(rival, PlainMTT)
    assert_same(loop, step(loop, images_of(), 0), rival.step(images_of(), 0))


def test_every_start_and_expert_is_drawn(experts: Path) -> None:
    loop = ours(experts)
    places = {
        loop.experts.parameters(k, t).double().sum().item(): (k, t)
        for k in range(2)
        for t in range(EPOCHS + 1)
    }
    drawn = set()
    for iteration in range(60):
        draws = loop.draw(iteration, 0)
        window = loop.window(draws.expert, draws.epoch)
        (k, t), (other, end) = (places[w.sum().item()] for w in window)
        assert (other, end) == (k, t + 1)
        drawn.add((k, t))
    assert drawn == {(k, t) for k in range(2) for t in range(EPOCHS)}


@pytest.mark.parametrize("soft_labels", [False, True])
def test_float32_is_near_float64(soft_labels: bool, experts: Path) -> None:
    changes: dict[str, Any] = {"student_steps": 5, "soft_labels": soft_labels}
    loop = ours(experts, torch.float32, **changes)
    result = step(loop, images_of(dtype=torch.float32), ITERATION)
    assert result[1].dtype == torch.float32
    images = images_of(dtype=torch.float32).double()
    assert_same(loop, result, plain(experts, **changes).step(images, ITERATION), 1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_chunks_changes_nothing(
    chunk: int, experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtt, "images_per_chunk", lambda *_: chunk)
    loop = ours(experts, soft_labels=True)
    expected = plain(experts, soft_labels=True).step(images_of(), ITERATION)
    assert_same(loop, step(loop, images_of(), ITERATION), expected, 1e-12)


def test_a_step_depends_on_seed_and_iteration_alone(experts: Path) -> None:
    images = images_of()
    loop, used = (ours(experts, soft_labels=True) for _ in range(2))
    loss, gradient = step(loop, images, 7)
    step(used, images, 0)
    again = step(used, images, 7)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], gradient)
    for name, each in loop.extra_parameters.items():
        assert each.tensor.grad is not None
        torch.testing.assert_close(
            used.extra_parameters[name].tensor.grad, each.tensor.grad, rtol=0, atol=0
        )
    assert not torch.equal(step(used, images, 8)[0], loss)
    assert not torch.equal(step(ours(experts, seed=SEED + 1), images, 7)[0], loss)


def test_a_step_leaves_images_and_the_global_generator_alone(experts: Path) -> None:
    images = images_of().requires_grad_()
    before, state = images.detach().clone(), torch.get_rng_state()
    step(ours(experts), images, 0)
    assert torch.equal(images, before)
    assert images.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_show_every_image_once_in_each_turn(experts: Path) -> None:
    loop = ours(experts, batch_syn=4)
    orders = []
    for turn in range(2):
        batches = [loop.batch_rows(0, 3 * turn + place) for place in range(3)]
        assert [len(rows) for rows in batches] == [4, 4, 2]
        orders.append(torch.cat(batches).tolist())
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] != orders[1]


def test_a_batch_as_large_as_the_set_has_it_in_order(experts: Path) -> None:
    loop = ours(experts, batch_syn=100)
    assert loop.batch_rows(0, 2).tolist() == list(range(10))
    assert loop.first_batch(0) is None


def test_an_iteration_begins_with_the_batch_of_the_first_step(experts: Path) -> None:
    loop = ours(experts, batch_syn=4)
    rows = loop.first_batch(1)
    assert rows is not None
    assert torch.equal(rows, loop.batch_rows(1, 0))
