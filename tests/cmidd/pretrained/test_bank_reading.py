"""Networks of a bank are read when they are first asked for, and as many stay as there is room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cmidd.networks import Network, build_network
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.dm import DMOptions
from cmidd.pretrained import bank as bank_module
from cmidd.pretrained.bank import Bank, train_bank
from cmidd.run import prepare
from cmidd.storage.growing_file import GrowingFile
from cmidd.storage.tensor_file import FileError
from cmikernels import ClassIndex, CMIRegularizer
from tests.support.tiny import CPU, NETWORK, quiet, tiny_bank, tiny_dataset, tiny_options

DATASET = tiny_dataset()
META = torch.device("meta")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    tiny_bank(path, DATASET)
    return path


@pytest.fixture(scope="module")
def size(path: Path) -> int:
    """Bytes of a network."""
    return sum(tensor.nbytes for tensor in Bank.load(path, CPU)[0].state_dict().values())


def weights(network: Network) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in network.state_dict().values()])


def test_a_damaged_network_is_noticed_when_it_is_read(path: Path, tmp_path: Path) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8 : 8 + length])["head.weight"]["data_offsets"]
    content[8 + length + last - 1] ^= 1  # of the last network
    damaged = tmp_path / "damaged"
    damaged.write_bytes(content)
    bank = Bank.load_for(DATASET, damaged, "bank", CPU)
    assert [torch.equal(weights(bank[k]), weights(Bank.load(path, CPU)[k])) for k in (0, 1)]
    bank.describe(), bank.first_weights(2)  # which need none of its numbers
    message = rf"{damaged}: a piece of head.weight of network 3: expected the checksum \d+, got"
    for _ in range(2):
        with pytest.raises(FileError, match=message):
            bank[2]
    content[8 + length + first] ^= 1  # of the first one too
    damaged.write_bytes(content)
    with pytest.raises(FileError, match=r"head.weight of network 1: expected"):
        Bank.load(damaged, CPU).describe()


def test_those_used_longest_ago_make_room(path: Path, size: int) -> None:
    every = [weights(network) for network in Bank.load(path, CPU)]
    bank = Bank.load(path, CPU, keep=2 * size)
    zero, one = bank[0], weakref.ref(bank[1])
    assert bank[0] is zero
    assert one() is bank[1]
    assert bank[0] is zero  # used last
    two = bank[2]
    assert one() is None
    assert bank[0] is zero
    assert bank[2] is two
    assert all(torch.equal(weights(bank[k]), every[k]) for k in (1, 2, 0, 1))
    assert bank[1] is bank[-2]


@pytest.mark.parametrize("keep", [0, 1])
def test_one_network_stays_at_least(path: Path, size: int, keep: int) -> None:
    bank = Bank.load(path, CPU, keep=keep * (2 * size - 1))
    assert bank[1] is bank[1]
    first = weakref.ref(bank[0])
    assert bank[1] is bank[1]
    assert first() is None
    every = bank[:]  # whose user has them
    assert [weights(network)[0] for network in every] == [weights(n)[0] for n in bank]


@pytest.mark.parametrize("keep", [-1, 1.5e9, True, "8"])
def test_room_is_a_number_of_bytes(path: Path, keep: Any) -> None:
    with pytest.raises(ValueError, match=rf"^keep: expected a number of bytes, got {keep!r}"):
        Bank.load(path, CPU, keep=keep)


def test_what_may_come_to_stay_is_told(path: Path, size: int) -> None:
    bank = Bank.load(path, META, keep=2 * size)
    told = [bank.to_come]
    for number in (0, 0, 1, 2):
        bank[number]
        told.append(bank.to_come)
    assert told == [2 * size, size, size, 0, 0]
    assert Bank.load(path, META).to_come == 3 * size
    assert Bank.load(path, CPU).to_come == 0
    assert bank in Bank.opened


@pytest.mark.parametrize(
    "crcs",
    [
        torch.zeros(3, 2, dtype=torch.int64),
        torch.zeros(3, 0, dtype=torch.int64),
        torch.full((3,), torch.nan),
    ],
)
def test_checksums_that_are_none_are_refused(path: Path, tmp_path: Path, crcs: Tensor) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["crc32 of head.weight"] = crcs
    other = tmp_path / "other"
    save_file(tensors, other, metadata)
    with pytest.raises(FileError, match=r"other: .*checksums: expected 3 int64 for each tensor"):
        Bank.load(other, CPU)


def test_a_file_that_is_written_into_is_noticed_at_the_next_copy(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank_module, "sent", lambda state, _: state)
    mine, other = tmp_path / "bank", tmp_path / "other"
    shutil.copy(path, mine)
    tiny_bank(other, DATASET, seed=5)
    bank = Bank.load(mine, META, keep=0)
    bank[0], bank[1]
    with mine.open("r+b") as file:
        file.write(other.read_bytes())
    for number in (0, 2):
        with pytest.raises(FileError, match=rf"of network {number + 1}: expected the checksum"):
            bank[number]


def test_class_means_of_real_images_take_each_network_once(
    path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int | None, Tensor] = {}
    load, plain = Bank.load, Bank._around
    for keep in (None, 0, 2 * size):
        made: list[int] = []

        def around(bank: Bank, state: Any, made: list[int] = made) -> Network:
            made.append(len(state))
            return plain(bank, state)

        with monkeypatch.context() as patch:
            patch.setattr(Bank, "load", partial(load, keep=keep))
            run = prepare(
                "dm",
                DATASET,
                DistillOptions(2, iterations=1),
                DMOptions(NETWORK),
                CMIOptions(path, cmi_weight=1.0, cmi_centroids="real"),
                device=CPU,
                say=quiet,
            )
            run.cmi._bank[0]
            patch.setattr(Bank, "_around", around)
            run.cmi.measure_real_means(quiet)
        assert len(made) <= 3
        assert run.cmi._regularizer is not None
        assert run.cmi._regularizer.centroids is not None
        found[keep] = run.cmi._regularizer.centroids
        assert len(run.cmi._regularizer.networks) == 3
    assert found[None].shape[0] == 3
    assert all(torch.equal(each, found[None]) for each in found.values())


def test_of_a_gpu_a_quarter_of_what_is_free_is_taken(
    path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: its device is never touched."""
    monkeypatch.setattr(bank_module, "usable_device", torch.device)
    monkeypatch.setattr(bank_module, "sent", lambda state, _: state)
    for free, there in ((8 * size, 2), (12 * size, 3), (0, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 99 * size))
        bank = Bank.load(path, "cuda:1")
        networks = [weakref.ref(network) for network in bank]
        assert sum(network() is not None for network in networks) == there
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    assert len(Bank.load(path, "cuda:1", keep=size)[:]) == 3
    assert len(Bank.load(path, "cpu")[:]) == 3


def test_a_network_goes_to_another_device_in_one_copy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU, to a device that has shapes and no numbers."""
    moved, to = list[tuple[Tensor, Any]](), Tensor.to

    def told(tensor: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        moved.append((tensor, settings))
        return to(tensor, *arguments, **settings)

    bank = Bank.load(path, META)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", told)
        network = bank[1]
        assert bank[1] is network
    (copy,) = moved
    assert copy[1] == {"non_blocking": True}
    expected = Bank.load(path, CPU)[1].state_dict()
    for name, tensor in network.state_dict().items():
        assert (tensor.device, tensor.shape) == (META, expected[name].shape)
        assert not tensor.requires_grad
    assert network(torch.empty(2, *DATASET.shape, device=META)).shape == (2, 3)


@pytest.mark.parametrize("networks", [1, 2])
def test_the_cmi_of_a_run_does_not_depend_on_the_room(path: Path, networks: int) -> None:
    labels = ClassIndex(DATASET.train.labels)
    images = DATASET.to_input(DATASET.train.images).requires_grad_()
    found = []
    for keep in (0, None):
        bank = Bank.load(path, CPU, keep=keep)
        regularizer = CMIRegularizer(bank, 5.0, networks_per_step=networks)
        assert len({tuple(regularizer.draw(step)) for step in range(4)}) > 1
        values = [regularizer(images, labels, step=step) for step in range(4)]
        found.append([*values, *torch.autograd.grad(torch.stack(values).sum(), images)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def grown(path: Path) -> None:
    train_bank(path, DATASET, tiny_options(networks=4), CPU, resume=True, say=quiet)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    tiny_bank(other, DATASET, seed=9)
    other.replace(path)


@pytest.mark.parametrize("change", [grown, replaced, Path.unlink])
def test_networks_are_those_of_the_file_that_was_opened(
    path: Path, tmp_path: Path, change: Any
) -> None:
    expected = [weights(network) for network in Bank.load(path, CPU)]
    there = tmp_path / "bank"
    there.write_bytes(path.read_bytes())
    bank = Bank.load(there, CPU, keep=0)
    about, first = bank.describe(), weights(bank[0])
    change(there)
    assert len(bank) == 3
    assert bank.describe() == about
    assert torch.equal(first, expected[0])
    assert all(torch.equal(weights(bank[k]), expected[k]) for k in (2, 0, 1))


def write_bank(path: Path, networks: int) -> None:
    """A bank of ResNet-18 with half of the channels, whose weights are zeros."""
    spec, dataset = "resnet18:width=32,norm=group", tiny_dataset(channels=3)
    record = {**dataset.describe(), "network": spec, "networks": networks, "seed": 0}
    state = build_network(spec, 3, 8, 3).state_dict()
    item = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    item["accuracy"] = torch.zeros(())
    growing = GrowingFile(
        path, bank_module.KIND, record, networks, item, resume=False, what="bank", lower="networks"
    )
    for k in range(networks):
        growing.put(k, item)
    growing.complete()


# The most that a process takes for three networks of a bank, mapped files included, and the bytes
# of a network. What is taken once for all is taken by a small bank first.
THREE = """
import sys, threading
from cmidd.pretrained.bank import Bank
def resident():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
for path in sys.argv[1:]:
    before, done, peaks = resident(), threading.Event(), [0]
    def watch():
        while not done.wait(0.001): peaks[0] = max(peaks[0], resident() - before)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    bank = Bank.load(path, "cpu")
    networks = [bank[k] for k in (0, len(bank) // 2, len(bank) - 1)]
    done.set()
    watcher.join()
print(*peaks, sum(tensor.nbytes for tensor in networks[0].state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_memory_follows_the_networks_that_are_used(tmp_path: Path) -> None:
    for name, networks in (("small", 1), ("large", 16)):
        write_bank(tmp_path / name, networks)
    done = subprocess.run(
        [sys.executable, "-c", THREE, str(tmp_path / "small"), str(tmp_path / "large")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    peak, size = map(int, done.stdout.split())
    assert os.path.getsize(tmp_path / "large") > 16 * size
    assert peak < 5 * size, (peak, size)
