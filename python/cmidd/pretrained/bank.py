"""A bank of trained networks in one safetensors file, and the training that fills it.

Every tensor of the networks' state is stacked, `(networks, ...)`; `trained` (networks,) uint8 says
which are done and `accuracy` (networks,) float32 what they reach on the test images. The file grows
network by network, as `growing_file.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.device import usable_device, with_precision
from cmidd.networks import Network, build_network, freeze
from cmidd.networks.usual import bank_network
from cmidd.options.fields import AS_PUBLISHED
from cmidd.options.pretrained import BankOptions
from cmidd.pretrained.filler import TrainingTask, fill
from cmidd.pretrained.mcmi import MCMI
from cmidd.seeds import seed_of
from cmidd.stack import Stack, first_weights, network_of
from cmidd.storage.growing_file import CRC_OF, GrowingFile, check_complete, check_piece
from cmidd.storage.lock import locked
from cmidd.storage.tensor_file import FileError, checksum, opened
from cmidd.training import Objective, cross_entropy

KIND = "bank of networks"
_NOT_OF_NETWORKS = ("kind", "format", "networks", "command", "source_command")  # in a record


class Bank(Sequence[Network]):
    """Frozen networks kept in memory. Each is built once and shares its tensors with the bank."""

    def __init__(
        self, state: dict[str, Tensor], record: dict[str, Any], device: torch.device
    ) -> None:
        self.record = record
        self._state = {name: tensor.to(device) for name, tensor in state.items()}
        self._networks: dict[int, Network] = {}

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str | None = None) -> Bank:
        """Read and check a complete bank, for a GPU where there is one unless told otherwise."""
        path, device = Path(path), usable_device(device)
        check_complete(path, "bank")
        with opened(path, KIND) as (file, record):
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        count = record.get("networks")
        if any(tensor.shape[:1] != (count,) for tensor in found.values()):
            raise FileError(f"{path}: expected tensors of {count} networks each")
        state = {name: found[name] for name in found if not name.startswith(CRC_OF)}
        try:
            trained = state.pop("trained")
            del state["accuracy"]
            bank = cls(state, record, device)
            bank[0]  # made here, so that a state of other networks is an error of this file
        except torch.OutOfMemoryError:  # of a GPU
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path}: expected networks as its record says ({error!r})") from None
        if not trained.all():
            raise FileError(f"{path}: only {int(trained.sum())} of {len(trained)} are trained")
        for name in state:
            if CRC_OF + name in found:  # which older files lack
                for each, crc in zip(found[name], found[CRC_OF + name], strict=True):
                    check_piece(path, name, each, crc)
        return bank

    @classmethod
    def load_for(
        cls, dataset: Dataset, path: Path, option: str, device: torch.device | str | None = None
    ) -> Bank:
        """Read the bank that an option names, which has to be of the dataset."""
        bank = cls.load(path, device)
        dataset.check_made_for(bank.record, f"{option}: {path}")
        dataset.check_unseen(bank.record, f"{option}: {path}")
        return bank

    def first_weights(self, number: int, name: str = "bank") -> dict[str, Tensor]:
        """The state, on the CPU, that the training of network `number` began with.

        No file holds it: it is drawn anew by the seed in the bank's record. Networks that were
        fine-tuned began with those of another bank, which began with these. Errors call it `name`.
        """
        record = self.record
        while isinstance(record.get("source"), dict):
            record = record["source"]
        seed = record.get("seed")
        if type(seed) is not int:
            raise ValueError(
                f"{name}: expected one that cmidd pretrain made, whose record has the seed of the "
                f"first weights of its networks, got seed {seed!r}"
            )
        return first_weights(self[number], seed_of(seed, "bank", number))

    def describe(self) -> dict[str, Any]:
        """What a bank that is made of this one remembers of it.

        That is the same when networks were added to it: of their weights it has the checksum of the
        first.
        """
        about = {name: v for name, v in self.record.items() if name not in _NOT_OF_NETWORKS}
        first = {name: tensor[0] for name, tensor in self._state.items()}
        return {**about, "crc32": checksum(first)}

    def __len__(self) -> int:
        """How many networks there are."""
        return int(self.record["networks"])

    @overload
    def __getitem__(self, number: int) -> Network: ...
    @overload
    def __getitem__(self, number: slice) -> list[Network]: ...
    def __getitem__(self, number: int | slice) -> Network | list[Network]:
        """Network `number`, frozen; the same object every time."""
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"number: expected one of {len(self)} networks, got {number}")
        number %= len(self)
        if number not in self._networks:
            state = {name: tensor[number] for name, tensor in self._state.items()}
            record = self.record
            network = network_of(record["network"], record["shape"], record["num_classes"], state)
            self._networks[number] = freeze(network)
        return self._networks[number]


def with_source(dataset: Dataset, options: BankOptions) -> tuple[BankOptions, Bank | None]:
    """Options, with what the bank has that is to be fine-tuned, and that bank, if there is one."""
    options.check()
    if options.from_bank is None:
        return options, None
    source = Bank.load_for(dataset, options.from_bank, "from_bank", "cpu")
    networks = len(source) if options.networks is AS_PUBLISHED else options.networks
    if networks > len(source):
        raise ValueError(
            f"networks: expected at most {len(source)}, as many as from_bank has, got {networks}"
        )
    spec = source.record["network"]
    return replace(options, network=spec, networks=networks, together=1), source


def train_bank(
    path: Path | str,
    dataset: Dataset,
    options: BankOptions,
    device: torch.device | str | None = None,
    *,
    resume: bool = False,
    objective: Objective = cross_entropy,
    command: str = "",
    say: Callable[[str], None] = tqdm.write,
) -> Bank:
    """Train the networks that are not there yet, and give back the complete bank.

    Args:
        path: file of the bank.
        dataset: what they learn.
        options: of the networks; of a bank that is there, only their number may change, to more.
        device: default: a GPU where there is one.
        resume: go on with the bank that was begun there.
        objective: what they minimise, in the place of cross-entropy.
        command: that makes the same again, for the record.
        say: told each network's accuracy.

    Example:
        >>> options = cmidd.BankOptions("convnet:depth=2,width=8", networks=2, epochs=1)
        >>> bank = cmidd.train_bank("runs/bank.safetensors", cmidd.load_dataset("digits"), options)
        network 1 of 2: ...% of test images right
        network 2 of 2: ...% of test images right
        >>> images = torch.zeros(5, 1, 8, 8)
        >>> bank[0](images).shape, bank[1].embed(images).shape
        (torch.Size([5, 10]), torch.Size([5, 32]))
    """
    path, place = Path(path), usable_device(device)
    options, source = with_source(dataset, with_precision((options,), place)[0])
    channels, size, _ = dataset.shape
    spec = options.network or bank_network(dataset.name, size)
    record = {**dataset.describe(), **options.as_record(), "network": spec}
    if objective is not cross_entropy:  # a key that older files lack
        record["objective"] = f"{objective.__module__}.{objective.__qualname__}"
    tuning, noted = None, {"command": command}
    if source is not None:
        if objective is not cross_entropy:
            raise ValueError(f"objective: expected none beside {options.objective} of the options")
        record["source"] = source.describe()
        noted["source_command"] = source.record.get("command", "")
        tuning = MCMI(source, record["source"], dataset, options, place)
        if tuning.weight > 0:
            say(
                f"mcmi_weight: {tuning.weight:g} is above 0, which makes the CMI of outputs "
                "smaller: learning constrained by CMI, and not MCMI"
            )
    state = build_network(spec, channels, size, dataset.num_classes).state_dict()

    def last_state(stack: Stack, place: int, number: int) -> dict[str, Tensor]:
        state = stack.states()[place]
        if not all(tensor.isfinite().all() for tensor in state.values()):
            too = "" if options.mcmi_weight is None else ", or bring mcmi_weight nearer to 0"
            raise FloatingPointError(
                f"network {number + 1}: its weights are NaN or Inf after training; lower lr{too}"
            )
        return state

    drawing = "bank" if tuning is None else "mcmi"
    seeds = [seed_of(options.seed, drawing, k) for k in range(options.networks)]
    task = TrainingTask(
        "network", spec, options.recipe(), seeds, options.together, objective, tuning
    )
    with ranks.only_first(lambda: locked(path)):
        growing = ranks.from_first(
            lambda: GrowingFile(
                path,
                KIND,
                record,
                options.networks,
                {**state, "accuracy": torch.empty(())},
                resume=resume,
                what="bank",
                lower="networks",
                grows="networks",
                noted=noted,
            )
        )
        fill(growing, task, dataset, place, at_the_end=last_state, say=say)
        ranks.from_first(growing.complete)
    del source, tuning, task  # whose networks would stay beside those that are read
    return Bank.load(path, place)
