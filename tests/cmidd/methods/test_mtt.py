from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.inputs import random_dataset
from bench.plain.mtt import PlainMTT, PlainStep
from cmidd.methods import mtt
from cmidd.methods.mtt import MTT, MTTOptions
from cmidd.pretrained.experts import KIND, ExpertOptions, Experts, fill_experts
from cmidd.seeds import generator
from cmidd.storage.tensor_file import write_tensors
from cmidd.synthetic import SyntheticSet
from tests.support.compare import relative_error
from tests.support.tiny import CPU, quiet

REAL = (7, 12, 4, 9, 6)
NETWORK = "convnet:depth=2,width=8"
EPOCHS = 3
SEED, ITERATION = 3, 5
DSA = "color_crop_cutout_flip_scale_rotate"

Trained = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Files of two experts of a network, made once."""
    folder = tmp_path_factory.mktemp("experts")

    def file(network: str) -> Path:
        path = folder / network
        if not path.exists():
            options = ExpertOptions(network, experts=2, epochs=EPOCHS, lr=0.05, batch_size=16)
            fill_experts(path, random_dataset(REAL, 16), options, CPU, say=quiet)
        return path

    return file


@pytest.fixture(scope="module")
def experts(trained: Trained) -> Path:
    return trained(NETWORK)


def options_of(experts: Path, **changes: Any) -> MTTOptions:
    standard = MTTOptions(
        experts, student_steps=3, expert_epochs=1, max_start_epoch=EPOCHS, lr_step_size=1e-5
    )
    return replace(standard, **changes)


def labels_of(ipc: int = 2) -> Tensor:
    return torch.arange(len(REAL)).repeat_interleave(ipc)


def images_of(ipc: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ipc * len(REAL), 3, 16, 16, generator=generator("synthetic", ipc)).to(dtype)


def ours(
    experts: Path,
    dtype: torch.dtype = torch.float64,
    *,
    ipc: int = 2,
    seed: int = SEED,
    **changes: Any,
) -> MTT:
    options = options_of(experts, **changes)
    return MTT(random_dataset(REAL, 16), labels_of(ipc), options, seed, CPU, dtype)


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
        of_labels = loop.learned["labels"].tensor.grad
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
    assert_same(loop, loop.step(images_of(), ITERATION), expected)


@pytest.mark.parametrize("norm", ["none", "group", "layer"])
def test_other_norms_are_those_of_the_unrolled_graph(norm: str, trained: Trained) -> None:
    path = trained(f"{NETWORK},norm={norm}")
    loop = ours(path, student_steps=5)
    assert_same(
        loop,
        loop.step(images_of(), ITERATION),
        plain(path, student_steps=5).step(images_of(), ITERATION),
    )


def test_random_and_trained_starts_are_those_of_the_unrolled_graph(experts: Path) -> None:
    loop, rival = ours(experts), plain(experts)
    first = {k: loop.experts.parameters(k, 0).double() for k in range(2)}
    random = []
    for iteration in range(8):
        start, _ = loop.window(iteration)
        random.append(any(torch.equal(start, weights) for weights in first.values()))
        assert_same(loop, loop.step(images_of(), iteration), rival.step(images_of(), iteration))
    assert {True, False} == set(random)


def test_all_operations_in_turn_are_those_of_the_unrolled_graph(experts: Path) -> None:
    loop, rival = (make(experts, augmentation=f"all:{DSA}") for make in (ours, plain))
    assert isinstance(loop, MTT)
    assert isinstance(rival, PlainMTT)
    assert_same(loop, loop.step(images_of(), 0), rival.step(images_of(), 0))


def test_every_start_and_expert_is_drawn(experts: Path) -> None:
    loop = ours(experts)
    places = {
        loop.experts.parameters(k, t).double().sum().item(): (k, t)
        for k in range(2)
        for t in range(EPOCHS + 1)
    }
    drawn = set()
    for iteration in range(60):
        (k, t), (other, end) = (places[w.sum().item()] for w in loop.window(iteration))
        assert (other, end) == (k, t + 1)
        drawn.add((k, t))
    assert drawn == {(k, t) for k in range(2) for t in range(EPOCHS)}


@pytest.mark.parametrize("soft_labels", [False, True])
def test_float32_is_near_float64(soft_labels: bool, experts: Path) -> None:
    changes: dict[str, Any] = {"student_steps": 5, "soft_labels": soft_labels}
    loop = ours(experts, torch.float32, **changes)
    result = loop.step(images_of(dtype=torch.float32), ITERATION)
    assert result[1].dtype == torch.float32
    images = images_of(dtype=torch.float32).double()
    assert_same(loop, result, plain(experts, **changes).step(images, ITERATION), 1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_size_of_chunks_changes_nothing(
    chunk: int, experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtt, "at_a_time", lambda *_: chunk)
    loop = ours(experts, soft_labels=True)
    expected = plain(experts, soft_labels=True).step(images_of(), ITERATION)
    assert_same(loop, loop.step(images_of(), ITERATION), expected, 1e-12)


def test_a_step_depends_on_seed_and_iteration_alone(experts: Path) -> None:
    images = images_of()
    loop, used = (ours(experts, soft_labels=True) for _ in range(2))
    loss, gradient = loop.step(images, 7)
    used.step(images, 0)
    again = used.step(images, 7)
    assert torch.equal(again[0], loss)
    assert torch.equal(again[1], gradient)
    for name, each in loop.learned.items():
        assert each.tensor.grad is not None
        torch.testing.assert_close(used.learned[name].tensor.grad, each.tensor.grad, rtol=0, atol=0)
    assert not torch.equal(used.step(images, 8)[0], loss)
    assert not torch.equal(ours(experts, seed=SEED + 1).step(images, 7)[0], loss)


def test_a_step_leaves_images_and_the_global_generator_alone(experts: Path) -> None:
    images = images_of().requires_grad_()
    before, state = images.detach().clone(), torch.get_rng_state()
    ours(experts).step(images, 0)
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
    assert loop.rows(0) is None


def test_an_iteration_begins_with_the_batch_of_the_first_step(experts: Path) -> None:
    loop = ours(experts, batch_syn=4)
    rows = loop.rows(1)
    assert rows is not None
    assert torch.equal(rows, loop.batch_rows(1, 0))


def test_learning_brings_the_student_nearer_to_the_expert(experts: Path) -> None:
    loop = ours(experts, soft_labels=True, max_start_epoch=1, lr_step_size=1e-3, lr_labels=0.1)
    images = images_of().requires_grad_()
    learned = [{"params": [each.tensor], "lr": each.lr} for each in loop.learned.values()]
    optimizer = torch.optim.SGD([{"params": [images], "lr": 2.0}, *learned])
    losses = []
    for _ in range(30):
        loss, images.grad = loop.step(images, 0)
        losses.append(loss.item())
        optimizer.step()
        loop.constrain()
    assert losses[-1] < 0.95 * losses[0]


def test_the_step_size_starts_as_told_or_as_the_experts_had_it(experts: Path) -> None:
    assert ours(experts).step_size.item() == 0.05
    assert ours(experts, step_size=0.25).numbers() == {"step_size": 0.25}
    assert ours(experts).learned["step_size"].lr == 1e-5


@pytest.mark.parametrize(
    ("moved_to", "kept"), [(0.3, 0.3), (0.2, 0.2), (0.01, 0.1), (-5.0, 0.1), (0.0, 0.1)]
)
def test_an_update_at_most_halves_the_step_size(
    moved_to: float, kept: float, experts: Path
) -> None:
    loop = ours(experts, step_size=0.2)
    loop.step(images_of(), 0)
    with torch.no_grad():
        loop.step_size.fill_(moved_to)
    loop.constrain()
    assert loop.step_size.item() == pytest.approx(kept)


def test_half_of_a_restored_step_size_is_its_bound(experts: Path) -> None:
    loop = ours(experts, step_size=0.2)
    with torch.no_grad():
        loop.step_size.fill_(0.02)  # as a checkpoint does
    loop.step(images_of(), 0)
    with torch.no_grad():
        loop.step_size.fill_(-1)
    loop.constrain()
    assert loop.step_size.item() == pytest.approx(0.01)


def test_a_step_size_that_is_nan_stays_so(experts: Path) -> None:
    loop = ours(experts)
    loop.step(images_of(), 0)
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
    finished = ours(experts).finished(before)
    assert finished.learned_lr == pytest.approx(0.05)
    assert finished.record["ipc"] == 2
    assert "learned_lr" not in before.record
    assert finished.soft_labels is None


def test_the_result_has_soft_labels_that_can_be_saved(experts: Path, tmp_path: Path) -> None:
    loop = ours(experts, soft_labels=True)
    finished = loop.finished(made())
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
        ({"student_steps": None}, "student_steps: expected at least 1, got None"),
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
        loop.step(images_of(), 0)


def test_a_student_on_all_real_images_walks_in_the_experts_steps(tmp_path: Path) -> None:
    dataset = random_dataset(REAL, 16)
    count = len(dataset.train)
    options = ExpertOptions(
        NETWORK, experts=1, epochs=3, lr=0.05, batch_size=count, augmentation="none"
    )
    fill_experts(tmp_path / "experts", dataset, options, CPU, say=quiet)
    given = options_of(
        tmp_path / "experts", student_steps=2, expert_epochs=2, max_start_epoch=2,
        augmentation="none",
    )  # fmt: skip
    loop = MTT(dataset, dataset.train.labels, given, SEED, CPU)
    for iteration in range(4):
        loss, _ = loop.step(dataset.to_input(dataset.train.images), iteration)
        assert loss < 1e-8
