"""Networks of a bank that MCMI fine-tunes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cmidd.augment import Strategy
from cmidd.datasets import load_dataset
from cmidd.options.pretrained import BankOptions
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.pretrained.mcmi import MCMI, accuracy_and_cmi, moved, train_centroids
from cmidd.score import score
from cmidd.seeds import seed_of
from cmidd.stack import Stack
from tests.support.tiny import (
    CPU,
    NETWORK,
    mcmi_options,
    quiet,
    tiny_bank,
    tiny_dataset,
)

DATASET = tiny_dataset()
RECORD = {"network": NETWORK}
BATCH_NORM = f"{NETWORK},norm=batch"
NONE = Strategy.parse("none")


@pytest.fixture(scope="module")
def tuned_file(bank_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcmi") / "tuned"
    train_bank(path, DATASET, mcmi_options(bank_file), CPU, say=quiet)
    return path


@pytest.fixture
def source(bank_file: Path) -> Bank:
    return Bank.load(bank_file, CPU)


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.mark.parametrize("weight", [-0.15, 0.0, 2.0])
def test_value_and_gradient_are_those_of_a_plain_loop(source: Bank, weight: float) -> None:
    stack = Stack(NETWORK, DATASET.shape, 3, [doubled(dict(source[0].state_dict()))])
    images = DATASET.to_input(DATASET.train.images).double()
    labels = DATASET.train.labels.flip(0)
    centroids = torch.rand(3, 3, dtype=torch.float64).softmax(1)
    tuning = MCMI(source, RECORD, DATASET, mcmi_options(Path(), mcmi_weight=weight), CPU)
    tuning.state["centroids"] = centroids
    found = tuning.objective(stack, images[None], labels[None])
    gradients = torch.autograd.grad(found, stack.parameters)

    network = source[0]
    weights = {
        name: tensor.double().requires_grad_() for name, tensor in network.state_dict().items()
    }
    expected = torch.zeros((), dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        logits = torch.func.functional_call(network, weights, (image[None],))[0]
        p = logits.exp() / logits.exp().sum()
        expected = expected - p[label].log()
        expected = expected + weight * (p * (p / centroids[label]).log()).sum()
    of_weights = torch.autograd.grad(expected, list(weights.values()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert max(float(gradient.abs().max()) for gradient in of_weights) > 0.1
    for gradient, of_weight in zip(gradients, of_weights, strict=True):
        torch.testing.assert_close(gradient[0], of_weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", [NETWORK, BATCH_NORM])
def test_centroids_are_class_means_of_outputs_in_training(network: str) -> None:
    images, labels = DATASET.inputs(DATASET.train.source), DATASET.train.labels
    assert isinstance(images, Tensor)
    stack = Stack.fresh(network, DATASET.shape, 3, [4], CPU)
    plain = Stack.fresh(network, DATASET.shape, 3, [4], CPU)
    found = train_centroids(stack, images, labels, NONE, 18, 0)
    plain.network.train()
    outputs = plain(images[None])[0].double().softmax(1)  # one batch, so its order is nothing
    expected = torch.stack([outputs[labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.sum(1), torch.ones(3).double())
    again = train_centroids(
        Stack.fresh(network, DATASET.shape, 3, [4], CPU), images, labels, NONE, 5, 1
    )
    assert torch.allclose(again, expected, rtol=1e-5) == (network == NETWORK)


def test_centroids_are_of_augmented_images_and_of_a_seed() -> None:
    images, labels = DATASET.inputs(DATASET.train.source), DATASET.train.labels
    stack = Stack.fresh(NETWORK, DATASET.shape, 3, [4], CPU)
    plain, one, same, other = (
        train_centroids(stack, images, labels, Strategy.parse(words), 5, seed)
        for words, seed in (("none", 0), ("all:crop_flip", 0), ("all:crop_flip", 0), ("crop", 1))
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, plain, rtol=1e-4)
    assert not torch.allclose(one, other, rtol=1e-4)


def test_a_network_begins_as_it_was(source: Bank, tmp_path: Path) -> None:
    """The pass for its centroids leaves the statistics of batch norm alone."""
    bank = tiny_bank(tmp_path / "bank", DATASET, network=BATCH_NORM, networks=1)
    tuning = MCMI(bank, bank.record, DATASET, mcmi_options(tmp_path / "bank"), CPU)
    stack = Stack(BATCH_NORM, DATASET.shape, 3, [tuning.first_state(0)])
    before = {name: tensor.clone() for name, tensor in stack.state.items()}
    tuning.prepare(stack, DATASET.inputs(DATASET.train.source), DATASET.train.labels, 0)
    assert float(tuning.state["centroids"].sum()) == pytest.approx(3)
    for name, tensor in bank[0].state_dict().items():
        assert torch.equal(tensor, stack.state[name][0])
        assert torch.equal(tensor, before[name][0])


@pytest.mark.parametrize("mirror", [True, False])
def test_a_network_begins_with_centroids_of_its_own_seed_and_as_its_options_say(
    tmp_path: Path, mirror: bool
) -> None:
    dataset = tiny_dataset(mirror=mirror)
    bank = tiny_bank(tmp_path / "bank", dataset, network=BATCH_NORM, networks=2)
    tuning = MCMI(bank, bank.record, dataset, mcmi_options(tmp_path / "bank"), CPU)
    images, labels = dataset.inputs(dataset.train.source), dataset.train.labels

    def stack(number: int = 1) -> Stack:
        return Stack(BATCH_NORM, dataset.shape, 3, [tuning.first_state(number)])

    tuning.prepare(stack(), images, labels, 7)
    found, seed = tuning.state["centroids"], seed_of(7, "centroids")
    usual, other = (
        Strategy.parse("all:crop_flip", mirror=mirror is same) for same in (True, False)
    )
    assert torch.equal(found, train_centroids(stack(), images, labels, usual, 5, seed))
    for wrong in (
        train_centroids(stack(), images, labels, other, 5, seed),
        train_centroids(stack(), images, labels, NONE, 5, seed),
        train_centroids(stack(), images, labels, usual, 6, seed),
        train_centroids(stack(), images, labels, usual, 5, 7),
        train_centroids(stack(0), images, labels, usual, 5, seed),
    ):
        assert not torch.allclose(found, wrong, rtol=1e-5)


def test_centroids_move_towards_the_outputs_of_their_class() -> None:
    centroids = torch.rand(3, 3).softmax(1)
    logits, labels = torch.randn(5, 3), torch.tensor([2, 0, 0, 2, 2])
    found = moved(centroids, logits, labels, 0.9)
    for c, count in enumerate((2, 0, 3)):
        of_class = logits[labels == c].double().softmax(1)
        left = 0.9**count
        expected = centroids[c].double() * left
        if count:
            expected = expected + (1 - left) * of_class.mean(0)
        torch.testing.assert_close(found[c].double(), expected, rtol=1e-5, atol=1e-7)
    exact = centroids.double()
    assert torch.equal(found[1], (exact / exact.sum(1, keepdim=True))[1].float())
    assert torch.allclose(moved(centroids, logits, labels, 1.0), centroids)


def test_moving_centroids_are_what_later_images_are_compared_with(source: Bank) -> None:
    options = mcmi_options(Path(), centroids="moving", centroid_decay=0.5)
    tuning = MCMI(source, RECORD, DATASET, options, CPU)
    stack = Stack(NETWORK, DATASET.shape, 3, [tuning.first_state(0)])
    images, labels = DATASET.to_input(DATASET.train.images)[None], DATASET.train.labels[None]
    first = tuning.state["centroids"] = torch.full((3, 3), 1 / 3)
    tuning.objective(stack, images, labels).backward()  # type: ignore[no-untyped-call]
    expected = moved(first, stack(images)[0].detach(), labels[0], 0.5)
    assert torch.equal(tuning.state["centroids"], expected)
    assert not torch.allclose(expected, first, rtol=1e-3)
    frozen = MCMI(source, RECORD, DATASET, mcmi_options(Path()), CPU)
    frozen.state["centroids"] = first
    frozen.objective(stack, images, labels)
    assert frozen.state["centroids"] is first


def test_accuracy_and_cmi_are_those_of_the_outputs(source: Bank) -> None:
    images, labels = DATASET.to_input(DATASET.test.images), DATASET.test.labels
    accuracy, cmi = accuracy_and_cmi(source[0], DATASET.batches(DATASET.test, CPU, 4), 3)
    outputs = source[0](images).double().softmax(1)
    spread = torch.zeros(())
    for c in range(3):
        p = outputs[labels == c]
        spread = spread + (p * (p / p.mean(0)).log()).sum()
    assert cmi == pytest.approx(float(spread) / len(labels), rel=1e-5)
    assert accuracy == float((outputs.argmax(1) == labels).double().mean())


def test_the_bank_is_one_like_any_other_and_says_what_it_is_of(
    bank_file: Path, tuned_file: Path, source: Bank
) -> None:
    tuned = Bank.load_for(DATASET, tuned_file, "bank", CPU)
    assert len(tuned) == 3
    expected = {**DATASET.describe(), "network": NETWORK, "epochs": 2, "objective": "mcmi",
                "mcmi_weight": -0.15, "centroids": "frozen", "schedule": "cosine"}  # fmt: skip
    assert expected.items() <= tuned.record.items()
    assert "centroid_decay" not in tuned.record
    assert str(bank_file) not in str(tuned.record)  # which may be moved
    of_source = tuned.record["source"]
    assert of_source == source.describe()
    assert (of_source["epochs"], of_source["lr"]) == (source.record["epochs"], 0.01)
    for one, other in zip(source, tuned, strict=True):
        assert not torch.equal(one.head.weight, other.head.weight)
    images = DATASET.to_input(DATASET.test.images)
    assert score(tuned, images, DATASET.test.labels, "logits").mean > 0
    for number in range(3):
        first, again = source.first_weights(number), tuned.first_weights(number)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_bank_that_was_fine_tuned_can_be_fine_tuned(tuned_file: Path, tmp_path: Path) -> None:
    again = train_bank(tmp_path / "again", DATASET, mcmi_options(tuned_file), CPU, say=quiet)
    assert again.record["source"]["source"] == Bank.load(tuned_file, CPU).record["source"]
    assert torch.equal(
        again.first_weights(2)["head.weight"],
        Bank.load(tuned_file, CPU).first_weights(2)["head.weight"],
    )


def test_cmi_of_held_out_images_rises_and_accuracy_stays(tmp_path: Path) -> None:
    digits = load_dataset("digits").holding_out(0.2)
    options = BankOptions(
        "convnet:width=16,depth=2", networks=1, epochs=12, lr=0.05, batch_size=64, schedule="cosine"
    )
    train_bank(tmp_path / "plain", digits, options, CPU, say=quiet)
    said: list[str] = []
    tuning = BankOptions(
        objective="mcmi",
        from_bank=tmp_path / "plain",
        epochs=6,
        lr=0.02,
        mcmi_weight=-0.4,  # stronger than published, for images that are easy
        augmentation="none",
    )
    train_bank(tmp_path / "tuned", digits, tuning, CPU, say=said.append)
    control = replace(tuning, mcmi_weight=0.0)  # which learns as long
    train_bank(tmp_path / "control", digits, control, CPU, say=quiet)
    plain, tuned, without = (
        accuracy_and_cmi(Bank.load(tmp_path / name, CPU)[0], digits.batches(digits.test, CPU), 10)
        for name in ("plain", "tuned", "control")
    )
    assert said == [
        f"network 1 of 1: {tuned[0]:.1%} of held-out images right, CMI {tuned[1]:.4g} "
        f"(before: {plain[0]:.1%}, CMI {plain[1]:.4g})"
    ]
    assert tuned[1] > 1.05 * plain[1]
    assert tuned[0] > plain[0] - 0.01
    assert tuned[1] > 1.08 * without[1]


def test_a_weight_above_0_is_learning_with_less_cmi_and_is_said_to_be(
    bank_file: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    options = mcmi_options(bank_file, mcmi_weight=0.5, networks=1)
    train_bank(tmp_path / "tuned", DATASET, options, CPU, say=said.append)
    assert said[0].startswith("mcmi_weight: 0.5 is above 0, which makes the CMI of outputs smaller")
    assert len(said) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_it_does_not_depend_on_what_was_drawn_before_nor_on_other_networks(
    bank_file: Path, tuned_file: Path, tmp_path: Path, number: int
) -> None:
    torch.manual_seed(7)
    options = mcmi_options(bank_file, networks=number + 1)
    few = train_bank(tmp_path / "few", DATASET, options, CPU, say=quiet)
    tuned = Bank.load(tuned_file, CPU)
    for name, tensor in few[number].state_dict().items():
        assert torch.equal(tensor, tuned[number].state_dict()[name])


def test_networks_with_batch_norm_keep_their_statistics(tmp_path: Path) -> None:
    tiny_bank(tmp_path / "bank", DATASET, network=BATCH_NORM, networks=2)
    tuned = train_bank(tmp_path / "tuned", DATASET, mcmi_options(tmp_path / "bank"), CPU, say=quiet)
    steps = [t for name, t in tuned[1].state_dict().items() if "num_batches" in name]
    assert [int(t) for t in steps] == [2 * 2 * 4] * len(steps)  # trained twice, epochs x batches
