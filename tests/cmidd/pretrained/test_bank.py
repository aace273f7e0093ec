from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cmidd.networks import build_network
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.seeds import seed_of
from cmidd.stack import Stack
from cmidd.training import cross_entropy, fresh_and_trained
from tests.support.tiny import (
    CPU,
    NETWORK,
    quiet,
    silent,
    tiny_bank,
    tiny_dataset,
    tiny_options,
)

DATASET = tiny_dataset()


BATCH_NORM = f"{NETWORK},norm=batch"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    tiny_bank(path, DATASET)
    return path


@pytest.fixture
def bank(path: Path) -> Bank:
    return Bank.load(path, CPU)


def test_the_file_is_plain_safetensors_with_stacked_tensors(path: Path) -> None:
    tensors = load_file(path)
    state = build_network(NETWORK, 1, 8, 3).state_dict()
    with_sums = {*state, "accuracy"}
    assert tensors.keys() == {*with_sums, "trained", *(f"crc32 of {each}" for each in with_sums)}
    for name, tensor in state.items():
        assert tensors[name].shape == (3, *tensor.shape)
        assert tensors[name].dtype == tensor.dtype
    assert tensors["trained"].tolist() == [1, 1, 1]


def test_the_record_says_how_the_networks_were_made(bank: Bank) -> None:
    expected = {**DATASET.describe(), "network": NETWORK, "networks": 3, "epochs": 2, "seed": 0}
    assert expected.items() <= bank.record.items()


def test_first_weights_are_those_that_training_began_with(tmp_path: Path) -> None:
    unmoved = tiny_bank(tmp_path / "bank", DATASET, lr=1e-30, weight_decay=0.0, seed=5)
    for number, network in enumerate(unmoved):
        first = unmoved.first_weights(number)
        assert first.keys() == network.state_dict().keys()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, first[name], rtol=0, atol=1e-25)


def test_first_weights_stay_what_they_are_from_version_to_version(bank: Bank) -> None:
    """No file holds them: NCFM draws them anew, years after the bank was trained."""
    found = bank.first_weights(1)["head.weight"][0, :3]
    torch.testing.assert_close(
        found, torch.tensor([-0.031465828, 0.107055634, 0.087954223]), rtol=1e-6, atol=0
    )


def test_first_weights_need_the_seed(bank: Bank) -> None:
    record = {name: value for name, value in bank.record.items() if name != "seed"}
    other = Bank(dict(bank[0].state_dict()), record, CPU)
    with pytest.raises(ValueError, match="bank: expected one that cmidd pretrain made, whose rec"):
        other.first_weights(0)


def test_networks_are_those_that_training_gives(path: Path, bank: Bank) -> None:
    assert len(bank) == 3
    train = DATASET.train
    for k, network in enumerate(bank):
        stack = fresh_and_trained(
            NETWORK,
            DATASET.to_input(train.images),
            train.labels,
            3,
            [seed_of(0, "bank", k)],
            tiny_options().recipe(),
            on_epoch=silent,
        )
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, stack.states()[0][name])
        images = DATASET.to_input(DATASET.test.images)
        right = (network(images).argmax(1) == DATASET.test.labels).double().mean()
        assert float(load_file(path)["accuracy"][k]) == pytest.approx(float(right))


def test_networks_differ(bank: Bank) -> None:
    first, second = bank[0].state_dict(), bank[1].state_dict()
    assert not any(torch.equal(first[name], second[name]) for name in first if "weight" in name)


def test_a_network_is_frozen_and_the_same_object_every_time(bank: Bank) -> None:
    network = bank[1]
    assert bank[1] is bank[-2] is bank[1:][0] is list(bank)[1] is network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_networks_share_the_memory_of_the_bank(bank: Bank) -> None:
    weights = [network.head.weight for network in bank]
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == 1
    assert all(weight.dtype == torch.float32 for weight in weights)


def test_a_bank_is_a_sequence(bank: Bank) -> None:
    assert bank[:2] == [bank[0], bank[1]]
    assert bank[::-1] == list(reversed(bank)) == [bank[2], bank[1], bank[0]]
    for number in (3, -4):
        with pytest.raises(IndexError, match=f"expected one of 3 networks, got {number}"):
            bank[number]


def test_a_bank_does_not_depend_on_what_was_drawn_before(path: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    tiny_bank(tmp_path / "again", DATASET)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_networks_trained_together_are_those_trained_alone(bank: Bank, tmp_path: Path) -> None:
    together = tiny_bank(tmp_path / "together", DATASET, together=2)
    for one, other in zip(bank, together, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_smaller_bank_is_the_start_of_a_larger_one(bank: Bank, tmp_path: Path) -> None:
    smaller = tiny_bank(tmp_path / "smaller", DATASET, networks=2)
    for one, other in zip(smaller, bank[:2], strict=True):
        assert all(torch.equal(t, one.state_dict()[name]) for name, t in other.state_dict().items())


def test_networks_with_batch_norm_keep_their_statistics(tmp_path: Path) -> None:
    bank = tiny_bank(tmp_path / "bank", DATASET, network=BATCH_NORM, networks=2)
    statistics = [
        {name: t for name, t in network.state_dict().items() if "running" in name}
        for network in bank
    ]
    assert statistics[0].keys() == statistics[1].keys() != set()
    for name, tensor in statistics[0].items():
        assert not torch.equal(tensor, statistics[1][name])
        assert not torch.equal(tensor, torch.zeros_like(tensor))
    steps = [t for name, t in bank[1].state_dict().items() if "num_batches" in name]
    assert [int(t) for t in steps] == [2 * 4] * len(steps)  # epochs x batches


def test_networks_with_batch_norm_are_not_trained_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one network at a time"):
        tiny_bank(tmp_path / "bank", DATASET, network=BATCH_NORM, together=2)


def test_another_objective_is_part_of_the_record(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    bank = train_bank(path, DATASET, tiny_options(), "cpu", objective=halved, say=quiet)
    assert bank.record["objective"].endswith("test_bank.halved")
    with pytest.raises(ValueError, match="with other settings"):
        train_bank(path, DATASET, tiny_options(), "cpu", resume=True, say=quiet)


def halved(stack: Stack, images: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(stack, images, targets) / 2


def test_weights_that_are_nan_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"network 1: .* lower lr"):
        tiny_bank(tmp_path / "bank", DATASET, lr=1e30)
    assert not (tmp_path / "bank").exists()
