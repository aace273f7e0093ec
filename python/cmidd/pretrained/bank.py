"""A bank of trained networks in one safetensors file, and the training that fills it.

Every tensor of the networks' state is stacked, `(networks, ...)`; `trained` (networks,) uint8 says
which are done and `accuracy` (networks,) float32 what they reach on the test images. The file grows
network by network, as `growing_file.py` says.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, overload
from weakref import WeakSet

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.device import usable_device, with_precision
from cmidd.networks import Network, build_network, freeze, network_outline
from cmidd.networks.usual import bank_network
from cmidd.options.fields import AS_PUBLISHED
from cmidd.options.pretrained import BankOptions
from cmidd.parcel import sent
from cmidd.pretrained.filler import TrainingTask, fill
from cmidd.pretrained.mcmi import MCMI
from cmidd.seeds import seed_of
from cmidd.stack import Stack, first_weights
from cmidd.storage.growing_file import CRC_OF, GrowingFile, check_complete, check_piece
from cmidd.storage.lock import locked
from cmidd.storage.tensor_file import FileError, checksum, opened
from cmidd.training import Objective, cross_entropy

KIND = "bank of networks"
_SHARE_OF_A_GPU = 4  # of whose free memory networks of a bank take one part in so many
_NOT_OF_NETWORKS = ("kind", "format", "networks", "command", "source_command")  # in a record


class Bank(Sequence[Network]):
    """Frozen networks of a file, each of which is read and checked when it is first asked for.

    On a CPU a network is the part of the file itself, mapped into memory. On another device it is a
    copy, which is checked every time, and on a GPU as many stay as there is room for; the one that
    was used longest ago goes first.

    Args:
        state: of all networks, stacked on the CPU; mapped from a file, it is read as it is used.
        record: what the file says of them.
        device: where the networks come to be.
        path: of the file, for messages.
        crcs: checksums of each tensor's parts, by its name.
        keep: bytes of networks that stay, as they are in the file, but one at least; None: all.
    """

    opened: ClassVar[WeakSet[Bank]] = WeakSet()  # those of this process

    def __init__(
        self,
        state: Mapping[str, Tensor],
        record: dict[str, Any],
        device: torch.device,
        *,
        path: Path | None = None,
        crcs: Mapping[str, Tensor] | None = None,
        keep: int | None = None,
    ) -> None:
        self.record = record
        self._state, self._crcs, self._path = state, crcs or {}, path or Path()
        self._device = device
        channels, size, *_ = record["shape"]
        self._outline = network_outline(record["network"], channels, size, record["num_classes"])
        self._networks: OrderedDict[int, Network] = OrderedDict()  # used last at the end
        self._checked: set[int] = set()
        self._of_one = sum(tensor.nbytes for tensor in state.values()) // max(1, len(self))
        self.most = len(self)  # networks that stay
        if keep is not None:
            self.most = min(self.most, max(1, keep // max(1, self._of_one)))
        Bank.opened.add(self)

    @property
    def to_come(self) -> int:
        """Bytes by which its copies may come to grow."""
        return 0 if self._device.type == "cpu" else self._of_one * (self.most - len(self._networks))

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: torch.device | str | None = None,
        *,
        keep: int | None = None,
    ) -> Bank:
        """Open a complete bank, and check all of it but the numbers of the networks.

        Args:
            path: of the file. While the bank is used it may be replaced by another or deleted on a
                disk of this machine, but not be written into.
            device: where the networks come to be; default: a GPU where there is one.
            keep: bytes of networks that stay there; default: a quarter of the memory of a GPU that
                is free now, and all networks on another device.
        """
        path, device = Path(path), usable_device(device)
        if keep is None and device.type == "cuda":
            held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            keep = (torch.cuda.mem_get_info(device)[0] + held) // _SHARE_OF_A_GPU
        if keep is not None and (type(keep) is not int or keep < 0):
            raise ValueError(f"keep: expected a number of bytes, got {keep!r}")
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
            crcs = {name: found[CRC_OF + name] for name in state if CRC_OF + name in found}
            if any(crc.shape != (count,) or crc.dtype != torch.int64 for crc in crcs.values()):
                raise ValueError(f"checksums: expected {count} int64 for each tensor")
            crcs = {name: crc.clone() for name, crc in crcs.items()}  # and not what is there later
            bank = cls(state, record, device, path=path, crcs=crcs, keep=keep)
            bank._around({name: tensor[0].to("meta") for name, tensor in state.items()})
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path}: expected networks as its record says ({error!r})") from None
        if not trained.all():
            raise FileError(f"{path}: only {int(trained.sum())} of {len(trained)} are trained")
        return bank

    @classmethod
    def load_for(
        cls, dataset: Dataset, path: Path, option: str, device: torch.device | str | None = None
    ) -> Bank:
        """Open the bank that an option names, which has to be of the dataset."""
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
        return first_weights(self._outline, seed_of(seed, "bank", self._number(number)))

    def describe(self) -> dict[str, Any]:
        """What a bank that is made of this one remembers of it.

        That is the same when networks were added to it: of their weights it has the checksum of the
        first.
        """
        about = {name: v for name, v in self.record.items() if name not in _NOT_OF_NETWORKS}
        return {**about, "crc32": checksum(self._state_of(0))}

    def __len__(self) -> int:
        """How many networks there are."""
        return int(self.record["networks"])

    @overload
    def __getitem__(self, number: int) -> Network: ...
    @overload
    def __getitem__(self, number: slice) -> list[Network]: ...
    def __getitem__(self, number: int | slice) -> Network | list[Network]:
        """Network `number`, frozen; the same object every time, as long as it stays."""
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        number = self._number(number)
        network = self._networks.pop(number, None)
        if network is None:
            state = self._state_of(number)
            while len(self._networks) >= self.most:
                self._networks.popitem(last=False)
            network = self._around(sent(state, self._device))
        self._networks[number] = network
        return network

    def check(self, count: int) -> None:
        """Compare the checksums of the first `count` networks."""
        for number in range(count):
            self._state_of(number)

    def _number(self, number: int) -> int:
        """The same, counted from the first network."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"number: expected one of {len(self)} networks, got {number}")
        return number % len(self)

    def _state_of(self, number: int) -> dict[str, Tensor]:
        """The state of a network as it is in the file, checked."""
        state = {name: tensor[number] for name, tensor in self._state.items()}
        if number not in self._checked or self._device.type != "cpu":
            for name, crcs in self._crcs.items():
                what = f"{name} of network {number + 1}"
                check_piece(self._path, what, state[name], crcs[number])
            self._checked.add(number)
        return state

    def _around(self, state: Mapping[str, Tensor]) -> Network:
        """A network of its own around a state, which it shares and does not copy."""
        network = copy.deepcopy(self._outline)
        network.load_state_dict(state, assign=True)
        return freeze(network)


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
    source.check(networks)
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
    return Bank.load(path, place)
