"""A bank of trained networks in one safetensors file, and the training that fills it.

Every tensor of the networks' state is stacked, `(networks, ...)`; `trained` (networks,) uint8 says
which are done and `accuracy` (networks,) float32 what they reach on the test images. The file is
laid out whole at the start and each network written into its place, so that filling a bank of any
size takes the memory of one network, and a killed run goes on with the first that is not done. Only
a complete bank has the name that was asked for; until then it ends in `.partial`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd import presets
from cmidd.datasets import Dataset
from cmidd.files import FileError, metadata, opened
from cmidd.networks import Network, build_network, freeze
from cmidd.seeds import seed_of
from cmidd.training import Recipe, at_once, fresh_and_trained, network_of

KIND = "bank of networks"
_CODES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


class Bank(Sequence[Network]):
    """Frozen networks, resident: each is made once, around tensors that stay where they are."""

    def __init__(
        self, state: dict[str, Tensor], record: dict[str, Any], device: torch.device
    ) -> None:
        self.record = record
        self._state = {name: tensor.to(device) for name, tensor in state.items()}
        self._networks: dict[int, Network] = {}

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Bank:
        """Read and check a complete bank."""
        partial = partial_path(path)
        if not path.exists() and partial.exists():
            raise FileNotFoundError(
                f"{path}: the bank is not complete; give the command that began it --resume"
            )
        with opened(path, KIND) as (file, record):
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        count = record.get("networks")
        if any(tensor.shape[:1] != (count,) for tensor in state.values()):
            raise FileError(f"{path}: expected tensors of {count} networks each")
        try:
            trained = state.pop("trained")
            del state["accuracy"]
            bank = cls(state, record, device)
            bank[0]  # made here, so that a state of other networks is an error of this file
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise FileError(f"{path}: expected networks as its record says ({error!r})") from None
        if not trained.all():
            raise FileError(f"{path}: only {int(trained.sum())} of {len(trained)} are trained")
        return bank

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


def partial_path(path: Path) -> Path:
    """Where a bank grows until it is complete."""
    return path.with_name(path.name + ".partial")


@dataclass(frozen=True)
class _Place:
    """A stacked tensor in the file: where it starts and how much one network takes."""

    start: int
    size: int


class _GrowingBank:
    """The file of a bank while it is filled."""

    def __init__(self, path: Path, record: dict[str, Any], template: dict[str, Tensor]) -> None:
        count = record["networks"]
        header: dict[str, Any] = {"__metadata__": metadata(KIND, record)}
        self._places: dict[str, _Place] = {}
        entries = {
            **template,
            "accuracy": torch.empty(()),
            "trained": torch.empty((), dtype=torch.uint8),
        }
        position = 0
        for name, tensor in sorted(entries.items(), key=lambda e: -e[1].element_size()):
            size = tensor.element_size() * math.prod(tensor.shape)
            header[name] = {
                "dtype": _CODES[tensor.dtype],
                "shape": [count, *tensor.shape],
                "data_offsets": [position, position + count * size],
            }
            self._places[name] = _Place(position, size)
            position += count * size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        self._base = len(head)
        self.path = path
        if path.exists():
            with path.open("rb") as file:
                if file.read(len(head)) != head:
                    raise ValueError(
                        f"resume: {path} is a bank with other settings; give the same ones, or "
                        "name another file"
                    )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            started = path.with_name(f".{path.name}")
            with started.open("wb") as file:
                file.write(head)
                file.truncate(len(head) + position)
            started.replace(path)

    def trained(self, number: int) -> bool:
        """Whether a network is in its place."""
        with self.path.open("rb") as file:
            file.seek(self._base + self._places["trained"].start + number)
            return file.read(1) == b"\x01"

    def put(self, number: int, state: dict[str, Tensor], accuracy: float) -> None:
        """Write one network; it counts as trained once all of it is on disk."""
        with self.path.open("r+b") as file:
            for name, tensor in {**state, "accuracy": torch.tensor(accuracy)}.items():
                place = self._places[name]
                file.seek(self._base + place.start + number * place.size)
                file.write(tensor.detach().cpu().contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
            file.seek(self._base + self._places["trained"].start + number)
            file.write(b"\x01")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class BankOptions:
    """The networks of a bank.

    Args:
        network: architecture; default: resnet18 as published, narrower for digits
        networks: how many; published: 1000, few serve small datasets
        epochs: passes over the training images
        lr: learning rate of SGD with momentum 0.9
        weight_decay: of SGD
        batch_size: images a step
        augmentation: DSA operations, or none as published
        seed: of first weights and order
        together: networks trained at once; default: 1 on a CPU, 5 on a GPU
    """

    network: str | None = None
    networks: int = 20
    epochs: int = 40
    lr: float = 0.01
    weight_decay: float = 1e-3
    batch_size: int = 256
    augmentation: str = "none"
    seed: int = 0
    together: int | None = None

    def recipe(self) -> Recipe:
        """How each is trained."""
        return Recipe(
            self.epochs, self.lr, 0.9, self.weight_decay, self.batch_size, 1.0, self.augmentation
        )


def fill(
    path: Path,
    dataset: Dataset,
    options: BankOptions,
    device: torch.device,
    *,
    resume: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> Bank:
    """Train the networks that are not there yet, and give back the complete bank."""
    begun = path if path.exists() else partial_path(path)
    if begun.exists() and not resume:
        raise FileExistsError(
            f"out: {begun} exists already; add --resume to go on with it, or name another file"
        )
    channels, size, _ = dataset.shape
    spec = options.network or presets.bank_network(dataset.name, size)
    settings = {name: value for name, value in asdict(options).items() if name != "together"}
    record = {**dataset.describe(), **settings, "network": spec}
    template = build_network(spec, channels, size, dataset.num_classes).state_dict()
    growing = _GrowingBank(begun, record, template)
    missing = [k for k in range(options.networks) if not growing.trained(k)]
    images = dataset.to_input(dataset.train.images.to(device))
    labels = dataset.train.labels.to(device)
    group_size = at_once(spec, device, options.together)
    with tqdm(total=len(missing) * options.epochs, desc="training networks", unit="epoch") as bar:
        for start in range(0, len(missing), group_size):
            group = missing[start : start + group_size]

            def advance(epoch: int, loss: float, group: list[int] = group) -> None:
                bar.update(len(group))
                bar.set_postfix(network=f"{group[-1] + 1}/{options.networks}", loss=f"{loss:.3f}")

            stack = fresh_and_trained(
                spec,
                images,
                labels,
                dataset.num_classes,
                [seed_of(options.seed, "bank", k) for k in group],
                options.recipe(),
                mirror=dataset.mirror,
                on_epoch=advance,
            )
            accuracies = stack.accuracy(dataset.batches(dataset.test, device))
            for k, state, accuracy in zip(group, stack.states(), accuracies, strict=True):
                if not all(tensor.isfinite().all() for tensor in state.values()):
                    raise FloatingPointError(
                        f"network {k + 1}: its weights are NaN or Inf after training; lower lr"
                    )
                growing.put(k, state, accuracy)
                say(f"network {k + 1} of {options.networks}: {accuracy:.1%} of test images right")
    begun.replace(path)
    return Bank.load(path, device)
