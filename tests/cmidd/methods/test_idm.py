from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.idm import PlainIDM
from bench.plain.inputs import random_dataset
from cmidd.datasets import Dataset
from cmidd.methods import dm
from cmidd.methods.dm import DM
from cmidd.methods.idm import IDM
from cmidd.options.dm import DMOptions
from cmidd.options.idm import IDMOptions
from cmidd.seeds import generator
from tests.support.compare import relative_error
from tests.support.steps import step
from tests.support.tiny import CPU

RAGGED = (7, 12, 5)  # real images of each class; batches of 6 take all of some
CLASSES, SEED, PIXELS = len(RAGGED), 3, 8
OPTIONS = IDMOptions(
    "convnet:depth=2,width=4",
    factor=2,
    batch_real=6,
    accuracy_weight=0.02,
    queue_size=4,
    push_interval=2,
    steps_net=3,
    batch_net=10,
    lr_net=0.1,
)


ONE: dict[str, Any] = {
    "queue_size": 1,
    "push_interval": 100,
}  # network, which trains and is matched in


def dataset_of(pixels: int = PIXELS) -> Dataset:
    """Channels differ, so that one of them in the place of another is seen."""
    return replace(random_dataset(RAGGED, pixels), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def labels_of(counts: int | Sequence[int]) -> Tensor:
    of_classes = [counts] * CLASSES if isinstance(counts, int) else counts
    return torch.arange(CLASSES).repeat_interleave(torch.tensor(of_classes))


def images_of(counts: int | Sequence[int], pixels: int = PIXELS) -> Tensor:
    shape = (len(labels_of(counts)), 3, pixels, pixels)
    return torch.randn(shape, generator=generator("synthetic", str(counts))).double()


def ours(counts: int | Sequence[int], *, pixels: int = PIXELS, **changes: Any) -> IDM:
    options = replace(OPTIONS, **changes)
    return IDM(dataset_of(pixels), labels_of(counts), options, SEED, CPU, torch.float64)


def plain(counts: int | Sequence[int], *, pixels: int = PIXELS, **changes: Any) -> PlainIDM:
    options = replace(OPTIONS, **changes)
    return PlainIDM(dataset_of(pixels), labels_of(counts), options, SEED, CPU, torch.float64)


@pytest.mark.parametrize(
    ("counts", "changes"),
    [
        (1, {}),
        (10, {}),
        ((3, 1, 5), {}),
        (2, {"factor": 1}),
        (2, {"factor": 3, "pixels": 10}),  # a row and a column of grey are added twice
        (1, {"pixels": 28}),  # of Fashion-MNIST, which the network pads
        (2, {"augmentation": "none", "batch_real": 100}),
        (2, {"queue_size": 1, "networks_trained": 3}),
        (2, {"queue_size": 2, "push_interval": 1}),
        (1, {"networks_trained": 9, "batch_net": 40, "push_interval": 1}),  # more than there are
    ],
    ids=str,
)
def test_steps_and_the_training_between_them_are_the_plain_loops(
    counts: int | Sequence[int], changes: dict[str, Any]
) -> None:
    images, expected = images_of(counts, changes.get("pixels", PIXELS)), plain(counts, **changes)
    loop, accuracies = ours(counts, **changes), []
    for iteration in range(7):
        loss, gradient = expected.step(images, iteration)
        found_loss, found = step(loop, images, iteration)
        assert relative_error(found_loss, loss) < 1e-10
        assert relative_error(found, gradient) < 1e-10
        accuracies.append(loop.accuracy.item())
        images = images - 0.05 * gradient
    assert len({*accuracies}) > 2  # networks that have trained, and others


@pytest.mark.parametrize("ipc", [1, 10])
def test_iterations_of_one_step_for_all_classes_are_those_of_a_step_after_each(ipc: int) -> None:
    loop, images = ours(ipc), images_of(ipc).requires_grad_()
    optimizer = loop.optimizer([{"params": [images], "lr": 0.3}], 0.5)
    expected, moved = plain(ipc), images_of(ipc).requires_grad_()
    steps = torch.optim.SGD([moved], 0.3, 0.5)
    for iteration in range(4):
        images.grad = step(loop, images, iteration)[1]
        optimizer.step()
        expected.turn(moved, steps, iteration)
    for rows in expected.classes:  # a class has the step after the last class's behind it
        of_class = moved[rows].detach().clone()
        assert relative_error(images[rows], of_class) < 1e-10
        moved.grad = torch.zeros_like(moved)
        steps.step()
    assert relative_error(moved, images_of(ipc)) > 1e-3


@pytest.mark.parametrize("counts", [2, (3, 1, 5)])
@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_the_size_of_chunks_changes_nothing(
    chunk: int, counts: int | Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = [ours(counts, **ONE)]
    monkeypatch.setattr(dm, "images_per_chunk", lambda *_: chunk)
    loops.append(ours(counts, **ONE))
    for iteration in range(3):
        whole, parts = (step(loop, images_of(counts), iteration) for loop in loops)
        assert relative_error(parts[0], whole[0]) < 1e-12
        assert relative_error(parts[1], whole[1]) < 1e-12
    assert loops[0].accuracy > 0


def test_the_cross_entropy_counts_by_the_accuracy_of_the_network() -> None:
    images, found = images_of(2), []
    for weight in (0.0, 0.02, 0.04):
        loop = ours(2, accuracy_weight=weight, **ONE)
        steps = [step(loop, images, iteration) for iteration in range(3)]
        found.append(steps)
        assert loop.accuracy > 0
    for without, once, twice in zip(*found, strict=True):
        for none, one, two in zip(without, once, twice, strict=True):
            torch.testing.assert_close(two - none, 2 * (one - none))
    assert torch.equal(found[0][0][1], found[2][0][1])  # of a network that has seen nothing
    assert relative_error(found[0][2][1], found[2][2][1]) > 0.01


def test_images_without_cells_in_a_network_that_has_not_trained_are_dms() -> None:
    loop, images = ours(2, factor=1), images_of(2)
    draws = loop.draw(0, 0)
    loss, gradient = loop.loss_and_gradient(images, draws)
    options = DMOptions(OPTIONS.network, batch_real=6)
    of_dm = DM(dataset_of(), labels_of(2), options, SEED, CPU, torch.float64)
    expected = step(of_dm, images, 0)
    assert not torch.equal(gradient, expected[1])  # of another network
    same = replace(of_dm.draw(0, 0), weights=ours(2).queue.weights(draws.matched))
    expected = of_dm.loss_and_gradient(images, same)
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


def test_the_state_is_all_that_an_iteration_depends_on() -> None:
    loop, images = ours(2), images_of(2)
    for iteration in range(5):
        step(loop, images, iteration)
    state = {name: tensor.clone() for name, tensor in loop.state().items()}
    expected = [step(loop, images, iteration) for iteration in (5, 6, 7)]
    again = ours(2)
    assert again.state() == {}
    again.load_state(state)
    assert again.state().keys() == state.keys()
    for iteration, (loss, gradient) in zip((5, 6, 7), expected, strict=True):
        found = step(again, images, iteration)
        assert torch.equal(found[0], loss)
        assert torch.equal(found[1], gradient)
    again.load_state({})
    assert torch.equal(step(again, images, 0)[1], step(ours(2), images, 0)[1])


def test_iterations_come_in_order() -> None:
    loop, images = ours(1), images_of(1)
    step(loop, images, 0)
    first = step(loop, images, 0)[1]
    assert torch.equal(step(ours(1), images, 0)[1], first)
    with pytest.raises(RuntimeError, match="iteration 2: each but the first comes after the one"):
        step(loop, images, 2)
    step(loop, images, 1)


def test_a_state_of_other_networks_is_refused() -> None:
    loop = ours(1)
    step(loop, images_of(1), 0)
    state = loop.state()
    for other in (
        {name: tensor for name, tensor in state.items() if name != "meters"},
        {**state, "meters": state["meters"][:1]},
        {**state, "weights head.bias": state["weights head.bias"][:, :1]},
        {**state, "velocity 7": state["meters"]},
    ):
        with pytest.raises(ValueError, match="expected the state of a queue of convnet:depth=2,wi"):
            ours(1).load_state(other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"networks": None}, "got due, meters, weights"),
        ({"due": torch.tensor(0)}, "got networks .* before iteration 0$"),
        ({"due": torch.tensor(-7)}, "got networks .* before iteration -7$"),
        ({"due": torch.tensor(99)}, "got networks .* before iteration 99$"),
        ({"due": torch.tensor(1.0)}, r"got due \(\) of torch.float32$"),
        ({"networks": torch.tensor([1, 1])}, r"got networks \[1, 1\] before iteration 1$"),
        ({"networks": torch.tensor([-1, 0])}, r"got networks \[-1, 0\]"),
        ({"networks": torch.tensor([0.0, 1.0])}, "got networks .* of torch.float32$"),
        ({"velocity head.bias": torch.zeros(2, 3).long()}, "got velocity head.bias .* of torch.in"),
        ({"meters": torch.zeros(2, 2).long()}, r"got meters \[\[0, 0\], \[0, 0\]\]$"),
        ({"meters": torch.tensor([[30, 31], [30, 0]])}, "got meters"),
        ({"meters": torch.tensor([[30, -1], [30, 0]])}, "got meters"),
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any], message: str) -> None:
    loop = ours(1)
    step(loop, images_of(1), 0)
    state = {name: each for name, each in {**loop.state(), **damage}.items() if each is not None}
    again = ours(1)
    with pytest.raises(ValueError, match=f"expected the state of a queue of .*, {message}"):
        again.load_state(state)
    assert again.state() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 9}, "factor: expected one that leaves pixels of 8 x 8 in every cell, got 9"),
        ({"factor": 5}, "factor: expected one that leaves pixels of 8 x 8 in every cell, got 5"),
        ({"queue_size": 0}, "queue_size: expected at least 1, got 0"),
        ({"networks_trained": 0}, "networks_trained: expected at least 1, got 0"),
        ({"accuracy_weight": -1.0}, "accuracy_weight: expected at least 0, got -1"),
        ({"network": "convnet:norm=batch"}, "network: expected one whose features depend on one"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(1, **changes)


def test_whitened_images_are_refused() -> None:
    with pytest.raises(ValueError, match="zca: expected images without whitening"):
        IDM(dataset_of().whitened(), labels_of(1), OPTIONS, SEED, CPU)


def test_a_value_that_only_a_run_knows_is_asked_for() -> None:
    with pytest.raises(ValueError, match="push_interval: expected a value; give one"):
        IDM(
            dataset_of(),
            labels_of(1),
            replace(OPTIONS, push_interval=IDMOptions().push_interval),
            0,
            CPU,
        )
