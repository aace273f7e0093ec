"""IID with base idm: its terms on the cells that IDM's networks see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.plain.iid import PlainIIDOnIDM
from bench.plain.inputs import random_dataset, write_bank
from cmidd.methods.idm import IDM
from cmidd.methods.iid import IID, IIDOnIDM, make
from cmidd.options.fields import AS_PUBLISHED
from cmidd.options.idm import IDMOptions
from cmidd.options.iid import OF_IDM_ALONE, IIDOptions
from cmidd.seeds import generator
from tests.support.compare import relative_error
from tests.support.steps import step
from tests.support.tiny import CPU

RAGGED = (7, 12, 5)
NETWORK, BANK, SEED = "convnet:depth=2,width=8", "resnet18:width=4", 3
OF_IDM: dict[str, Any] = {
    "factor": 2, "accuracy_weight": 0.02, "queue_size": 4, "push_interval": 2,
    "networks_trained": 2, "steps_net": 3, "batch_net": 10, "lr_net": 0.1,
}  # fmt: skip
# With these each of the terms is a good part of the gradient.
WEIGHTS: dict[str, Any] = {"covariance_weight": 1.0, "centre_weight": 0.5}
DATASET = random_dataset(RAGGED, 16)


@pytest.fixture(scope="module")
def bank(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("iid-on-idm") / "bank.safetensors"
    write_bank(path, DATASET, BANK)
    return path


def options_of(bank: Path | None, **changes: Any) -> IIDOptions:
    given = {**WEIGHTS, **OF_IDM, "base": "idm", "centre_bank": bank, **changes}
    return IIDOptions(NETWORK, 8, **given)


def labels_of(ipc: int) -> Tensor:
    return torch.arange(len(RAGGED)).repeat_interleave(ipc)


def images_of(ipc: int) -> Tensor:
    shape = (len(RAGGED) * ipc, 3, 16, 16)
    return torch.randn(shape, generator=generator("synthetic", ipc)).double()


def ours(bank: Path | None, ipc: int, **changes: Any) -> IID:
    options = options_of(bank, **changes)
    return make(DATASET, labels_of(ipc), options, SEED, CPU, torch.float64)


def plain(bank: Path, ipc: int) -> PlainIIDOnIDM:
    return PlainIIDOnIDM(DATASET, labels_of(ipc), options_of(bank), SEED, CPU, torch.float64)


@pytest.mark.parametrize("ipc", [1, 10])
def test_steps_are_the_plain_loops(ipc: int, bank: Path) -> None:
    loop, expected, images = ours(bank, ipc), plain(bank, ipc), images_of(ipc)
    assert isinstance(loop, IIDOnIDM)
    accuracies = []
    for iteration in range(5):
        loss, gradient = expected.step(images, iteration)
        found_loss, found = step(loop, images, iteration)
        assert relative_error(found_loss, loss) < 1e-10
        assert relative_error(found, gradient) < 1e-10
        images = images - 0.05 * gradient
        accuracies.append(loop.accuracy.item())
    assert max(accuracies) > 0


def test_an_iteration_of_one_step_for_all_classes_is_that_of_a_step_after_each(bank: Path) -> None:
    loop, images = ours(bank, 2), images_of(2).requires_grad_()
    optimizer = loop.optimizer([{"params": [images], "lr": 0.1}], 0.5)
    expected, moved = plain(bank, 2), images_of(2).requires_grad_()
    steps = torch.optim.SGD([moved], 0.1, 0.5)
    images.grad = step(loop, images, 0)[1]
    optimizer.step()
    expected.turn(moved, steps, 0)
    for rows in expected.classes:
        assert relative_error(images[rows], moved[rows].detach().clone()) < 1e-10
        moved.grad = torch.zeros_like(moved)
        steps.step()


def test_every_term_is_a_part_of_the_gradient(bank: Path) -> None:
    whole = step(ours(bank, 1), images_of(1), 0)[1]
    for weight in WEIGHTS:
        changes: dict[str, Any] = {weight: 0.0}
        assert relative_error(step(ours(bank, 1, **changes), images_of(1), 0)[1], whole) > 0.05


def test_without_its_weights_it_is_idm_and_needs_no_bank() -> None:
    loop = ours(None, 2, covariance_weight=0.0, centre_weight=0.0)
    options = IDMOptions(NETWORK, 8, **OF_IDM)
    assert options == options_of(None).of_idm()
    expected = IDM(DATASET, labels_of(2), options, SEED, CPU, torch.float64)
    for iteration in range(3):
        found = step(loop, images_of(2), iteration)
        assert all(map(torch.equal, found, step(expected, images_of(2), iteration)))


def test_the_cells_of_one_image_have_a_centre_and_need_a_bank() -> None:
    with pytest.raises(ValueError, match=r"^centre_bank: expected the file of a bank"):
        ours(None, 1)
    assert ours(None, 1, factor=1).bank is None


@pytest.mark.parametrize("name", OF_IDM)
def test_options_of_idm_are_for_that_base_alone(name: str) -> None:
    given: dict[str, Any] = {name: OF_IDM[name]}
    options = IIDOptions(NETWORK, 8, **WEIGHTS, **given)
    for refusing in (options.check, lambda: make(DATASET, labels_of(1), options, SEED, CPU)):
        with pytest.raises(ValueError, match=f"^{name}: expected none with base dm, got "):
            refusing()
    replace(options, base="idm").check()


def test_a_base_leaves_its_own_options_to_what_is_published() -> None:
    assert set(OF_IDM) == set(OF_IDM_ALONE)
    on_dm, on_idm = IIDOptions(), IIDOptions(base="idm")
    assert {getattr(on_dm, name) for name in OF_IDM} == {None}
    assert {getattr(on_idm, name) for name in OF_IDM} == {AS_PUBLISHED}
    with pytest.raises(ValueError, match="base: expected dm or idm, got 'dc'"):
        IIDOptions(base="dc")
