from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from cmidd import training_file
from cmidd.augment import Strategy, augment, draw
from cmidd.datasets import Dataset
from cmidd.methods.mtt import published
from cmidd.networks import build_network, initialize
from cmidd.options.pretrained import ExpertOptions
from cmidd.options.recipe import DSA, Recipe
from cmidd.pretrained.experts import Experts, fill_in_experts, train_experts
from cmidd.seeds import generator, seed_of
from cmidd.storage.growing_file import partial_path
from cmidd.storage.output import in_words
from cmidd.training import train
from tests.support.tiny import (
    CPU,
    NETWORK,
    expert_options,
    tiny_dataset,
    tiny_experts,
)

DATASET = tiny_dataset()


EXPERTS, EPOCHS = 3, 2


SIZE = sum(p.numel() for p in build_network(NETWORK, 1, 8, 3).parameters())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experts") / "experts.safetensors"
    tiny_experts(path, DATASET)
    return path


@pytest.fixture
def experts(path: Path) -> Experts:
    return Experts.load(path)


def by_hand(k: int, dataset: Dataset, options: ExpertOptions) -> tuple[list[Tensor], float]:
    """Flat parameters after every epoch of a module with torch's SGD, and its accuracy."""
    channels, size, _ = dataset.shape
    network = build_network(options.network or NETWORK, channels, size, dataset.num_classes)
    seed = seed_of(options.seed, "experts", k)
    initialize(network, generator(seed, "first weights"))
    optimizer = torch.optim.SGD(
        network.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay
    )
    images, labels = dataset.to_input(dataset.train.images), dataset.train.labels
    strategy = Strategy.parse(options.augmentation, mirror=dataset.mirror)

    def flat() -> Tensor:
        return torch.cat([p.detach().flatten() for _, p in network.named_parameters()])

    trajectory = [flat()]
    for epoch in range(options.epochs):
        order = torch.randperm(len(images), generator=generator(seed, "order", epoch))
        for step, rows in enumerate(torch.split(order, options.batch_size)):
            x = images[rows]
            if strategy.operations:
                words = generator(seed, "augmentation", epoch, step)
                x = augment(x, strategy, draw(strategy, len(rows), words, one_operation=True))
            optimizer.zero_grad()
            F.cross_entropy(network(x), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        trajectory.append(flat())
    right = network(dataset.to_input(dataset.test.images)).argmax(1) == dataset.test.labels
    return trajectory, float(right.double().mean())


def test_the_file_is_plain_safetensors(path: Path) -> None:
    tensors = load_file(path)
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        "parameters": ((EXPERTS, EPOCHS + 1, SIZE), torch.float32),
        "accuracy": ((EXPERTS,), torch.float32),
        "trained": ((EXPERTS,), torch.uint8),
        "crc32 of parameters": ((EXPERTS, EPOCHS + 1), torch.int64),
        "crc32 of accuracy": ((EXPERTS,), torch.int64),
    }
    assert tensors["trained"].tolist() == [1] * EXPERTS


def test_the_record_says_how_the_experts_were_made(experts: Experts) -> None:
    settings = vars(replace(expert_options(), precision="float32")).items() - {("together", None)}
    assert settings <= experts.record.items()
    assert "together" not in experts.record
    DATASET.check_made_for(experts.record, "experts")


@pytest.mark.parametrize(
    ("changes", "mirror"),
    [
        ({"lr": 0.1}, True),
        ({"lr": 0.1}, False),
        ({"lr": 0.1, "augmentation": "none"}, True),
        ({"momentum": 0.9, "weight_decay": 0.1, "epochs": 4, "seed": 5}, True),
        ({"network": "resnet18:width=4,norm=group", "experts": 1}, True),
    ],
)
def test_every_epoch_is_that_of_a_plain_loop_with_torch_sgd(
    tmp_path: Path, changes: dict[str, Any], mirror: bool
) -> None:
    dataset = tiny_dataset(mirror=mirror)
    experts = tiny_experts(tmp_path / "experts", dataset, **changes)
    options = expert_options(**changes)
    for k in range(len(experts)):
        trajectory, accuracy = by_hand(k, dataset, options)
        for epoch, expected in enumerate(trajectory):
            found = experts.parameters(k, epoch)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert float(load_file(tmp_path / "experts")["accuracy"][k]) == pytest.approx(accuracy)


def test_experts_move_and_differ(experts: Experts) -> None:
    rows = [experts.parameters(k, t) for k in range(EXPERTS) for t in range(EPOCHS + 1)]
    assert len(torch.unique(torch.stack(rows), dim=0)) == len(rows)


def without_checksums(path: Path) -> dict[str, Tensor]:
    return {k: tensor for k, tensor in load_file(path).items() if not k.startswith("crc32")}


def test_experts_trained_together_are_those_trained_alone(path: Path, tmp_path: Path) -> None:
    alone = without_checksums(path)
    for together in (2, 3):
        tiny_experts(tmp_path / f"{together}", DATASET, together=together)
        found = without_checksums(tmp_path / f"{together}")
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)


def test_experts_do_not_depend_on_what_was_drawn_before_nor_draw(
    path: Path, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tiny_experts(tmp_path / "again", DATASET)
    assert torch.equal(torch.get_rng_state(), before)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_few_experts_are_the_first_of_many(experts: Experts, tmp_path: Path) -> None:
    few = tiny_experts(tmp_path / "few", DATASET, experts=1)
    assert torch.equal(few.parameters(0, EPOCHS), experts.parameters(0, EPOCHS))


def test_it_says_how_large_the_file_gets_and_each_accuracy(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "new" / "experts"
    train_experts(out, DATASET, expert_options(), CPU, say=said.append)
    size = out.stat().st_size
    assert 0 < size - EXPERTS * (EPOCHS + 1) * SIZE * 4 < 1000  # the header
    assert said[0].startswith(f"{out} takes {in_words(size)} (")
    assert said[0].endswith("experts to train: 3, steps in all: 24")
    accuracies = load_file(out)["accuracy"].tolist()
    assert said[1:] == [
        f"expert {k + 1} of 3: {accuracy:.1%} of test images right"
        for k, accuracy in enumerate(accuracies)
    ]


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = EXPERTS * (EPOCHS + 1) * SIZE * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    with pytest.raises(ValueError, match=r"out: .* free; lower experts or epochs"):
        tiny_experts(tmp_path / "new" / "experts", DATASET)
    assert list(tmp_path.iterdir()) == []


def test_networks_with_statistics_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    network = f"{NETWORK},norm=batch"
    with pytest.raises(ValueError, match=rf"network: .* parameters alone, .* got {network}; take"):
        tiny_experts(tmp_path / "experts", DATASET, network=network)
    assert list(tmp_path.iterdir()) == []


def test_an_expert_that_does_not_move_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"lr: 1e-30 is too small: expert 1 does not move in epoch 1"
    ):
        tiny_experts(tmp_path / "experts", DATASET, lr=1e-30)


def test_an_unknown_augmentation_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="augmentation: no operation 'blur'"):
        tiny_experts(tmp_path / "experts", DATASET, augmentation="blur")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, "experts: expected at least 1, got 0"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: expected at least 1, got -1"),
        ({"together": 0}, "together: expected at least 1, got 0"),
        ({"momentum": -0.5}, "momentum: expected at least 0, got -0.5"),
        ({"weight_decay": float("nan")}, "weight_decay: expected at least 0, got nan"),
        ({"lr": 0.0}, "lr: expected more than 0, got 0.0"),
        ({"lr": float("nan")}, "lr: expected more than 0, got nan"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertOptions(**changes)


USUAL = "experts 100, epochs 50, lr 0.01"


@pytest.mark.parametrize(
    ("name", "given", "expected", "words"),
    [
        ("cifar10", {}, (100, 50, 0.01), f"{USUAL} (MTT's published default)"),
        ("digits", {}, (10, 15, 0.05), "experts 10, epochs 15, lr 0.05 (ours for digits)"),
        ("digits", {"experts": 3, "lr": 1.0}, (3, 15, 1.0), "epochs 15 (ours for digits)"),
        ("tiny", {"experts": 3, "epochs": 2, "lr": 1.0}, (3, 2, 1.0), ""),
    ],
)
def test_what_is_not_given_suits_the_dataset(
    name: str, given: dict[str, Any], expected: tuple[int, int, float], words: str
) -> None:
    options, said = fill_in_experts(tiny_dataset(name), ExpertOptions(**given))
    assert (options.experts, options.epochs, options.lr) == expected
    assert said == words
    assert options.recipe() == Recipe(expected[1], expected[2], 0.0, 0.0, 256, 1.0, DSA)


@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_the_experts_of_the_digits_suit_the_settings_of_mtt(ipc: int) -> None:
    digits = tiny_dataset("digits")
    experts, _ = fill_in_experts(digits, ExpertOptions())
    settings = published(digits, ipc).options
    assert settings["max_start_epoch"] - 1 + settings["expert_epochs"] <= experts.epochs


def test_weights_that_are_nan_stop_it_and_what_was_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "experts"
    with pytest.raises(FloatingPointError, match=r"expert 1: .* after epoch 1; lower lr"):
        tiny_experts(out, DATASET, lr=1e30)
    partial_path(out).unlink()

    def damaging(stack: Any, *arguments: Any, on_epoch: Callable[..., None], **rest: Any) -> None:
        def damage(epoch: int, loss: float) -> None:
            if epoch == 2 and len(done) == 1:
                stack.parameters[0].data[..., 0] = float("inf")
            on_epoch(epoch, loss)

        train(stack, *arguments, on_epoch=damage, **rest)
        done.append(1)

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(training_file, "train", damaging)
        with pytest.raises(FloatingPointError, match="expert 2: its weights are NaN or Inf after"):
            tiny_experts(out, DATASET)
    said: list[str] = []
    train_experts(out, DATASET, expert_options(), CPU, resume=True, say=said.append)
    assert said[1] == "1 of 3 experts are there already"
    assert [line.partition(":")[0] for line in said[2:]] == ["expert 2 of 3", "expert 3 of 3"]
