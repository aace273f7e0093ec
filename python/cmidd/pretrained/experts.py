"""Experts for MTT: networks trained on the real images, with their parameters after every epoch.

`parameters` (experts, epochs + 1, P) float32 has the flat parameters, each of `named_parameters()`
in order, before the first epoch and after each; `accuracy` (experts,) float32 says what they reach
on the test images in the end, `trained` (experts,) uint8 which are done. The file grows epoch by
epoch, as `growing.py` says, so that training takes the memory of a few networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd.augment import DSA, Strategy
from cmidd.datasets import Dataset
from cmidd.networks import build_network
from cmidd.networks.usual import gradient_network
from cmidd.seeds import seed_of
from cmidd.storage.growing_file import GrowingFile, check_complete
from cmidd.storage.tensor_file import FileError, in_words, opened
from cmidd.training import Recipe, Stack, at_once, train

KIND = "set of experts"


class Experts:
    """The trajectories of a complete file, which stay on disk."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.record = record
        self._path = path

    @classmethod
    def load(cls, path: Path) -> Experts:
        """Check a complete file; of the trajectories nothing is read."""
        check_complete(path, KIND)
        with opened(path, KIND) as (file, record):
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
            try:
                count, epochs = record["experts"], record["epochs"]
                size = _size(record["network"], record["shape"], record["num_classes"])
                expected = {
                    "parameters": ("F32", [count, epochs + 1, size]),
                    "accuracy": ("F32", [count]),
                    "trained": ("U8", [count]),
                }
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise FileError(f"{path}: expected the record of a {KIND} ({error!r})") from None
            if found != expected:
                raise FileError(f"{path}: expected {expected} as its record says, got {found}")
            done = int(file.get_tensor("trained").sum())
        if done < count:
            raise FileError(f"{path}: only {done} of {count} are trained")
        return cls(path, record)

    def __len__(self) -> int:
        """How many experts there are."""
        return int(self.record["experts"])

    def parameters(self, expert: int, epoch: int) -> Tensor:
        """(P,) float32 on the CPU: flat parameters after `epoch` epochs; 0: the first weights."""
        for name, number, last in (
            ("expert", expert, len(self) - 1),
            ("epoch", epoch, self.record["epochs"]),
        ):
            if not 0 <= number <= last:
                raise IndexError(f"{name}: expected a number from 0 to {last}, got {number}")
        # Opened anew each time: what was read of a mapping stays resident as long as it is open.
        with opened(self._path, KIND) as (file, _):
            row: Tensor = file.get_slice("parameters")[expert, epoch].clone()
        return row


@dataclass(frozen=True)
class ExpertOptions:
    """The networks whose training MTT matches.

    Args:
        network: architecture, without batch norm; default: convnet, of depth 2 for images of 8 x 8
            and deeper from 64 x 64 on
        experts: how many; published: 100
        epochs: passes over the training images; their parameters are kept after each
        lr: learning rate of SGD
        momentum: of SGD
        weight_decay: of SGD
        batch_size: images a step
        augmentation: DSA operations as published, or none
        seed: of first weights, order and augmentation
        together: experts trained at once; default: 1 on a CPU, 5 on a GPU
    """

    network: str | None = None
    experts: int = 100
    epochs: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 256
    augmentation: str = DSA
    seed: int = 0
    together: int | None = None

    def __post_init__(self) -> None:
        for least, names in (
            (1, ("experts", "epochs", "batch_size", "together")),
            (0, ("momentum", "weight_decay")),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not value >= least:
                    raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not self.lr > 0:
            raise ValueError(f"lr: expected more than 0, got {self.lr}")

    def recipe(self) -> Recipe:
        """How each is trained."""
        return Recipe(
            self.epochs,
            self.lr,
            self.momentum,
            self.weight_decay,
            self.batch_size,
            1.0,
            self.augmentation,
        )


def fill_experts(
    path: Path,
    dataset: Dataset,
    options: ExpertOptions,
    device: torch.device,
    *,
    resume: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> Experts:
    """Train the experts that are not there yet, and give back all of them."""
    Strategy.parse(options.augmentation)
    settings = {name: value for name, value in asdict(options).items() if name != "together"}
    spec = settings["network"] = options.network or gradient_network(dataset.shape.height)
    size = _size(spec, dataset.shape, dataset.num_classes)
    growing = GrowingFile(
        path,
        KIND,
        {**dataset.describe(), **settings},
        options.experts,
        {
            "parameters": torch.empty(options.epochs + 1, size, device="meta"),
            "accuracy": torch.empty(()),
        },
        resume=resume,
        what=KIND,
        lower="experts or epochs",
    )
    missing = growing.missing()
    if missing:
        epochs = len(missing) * options.epochs
        steps = epochs * math.ceil(len(dataset.train) / options.batch_size)
        say(
            f"{path} takes {in_words(growing.size)} ({in_words(growing.free)} free there): "
            f"experts to train: {len(missing)}, steps in all: {steps:,}"
        )
        images = dataset.to_input(dataset.train.images.to(device))
        # The same groups after a kill: what is trained together is rounded together.
        group_size = at_once(spec, device, options.together)
        numbers = range(options.experts)
        groups = [numbers[k : k + group_size] for k in numbers[::group_size]]
        with tqdm(total=epochs, desc="training experts", unit="epoch") as bar:
            for group in groups:
                wanted = set(missing) & set(group)
                if wanted:
                    _train(growing, group, wanted, dataset, images, spec, options, bar, say)
    growing.complete()
    return Experts.load(path)


def _train(
    growing: GrowingFile,
    group: range,
    wanted: set[int],
    dataset: Dataset,
    images: Tensor,
    spec: str,
    options: ExpertOptions,
    bar: tqdm,
    say: Callable[[str], None],
) -> None:
    """Train a group of experts together, and put those into the file that it lacks."""
    device = images.device
    seeds = [seed_of(options.seed, "experts", k) for k in group]
    stack = Stack.fresh(spec, dataset.shape, dataset.num_classes, seeds, device)

    before: list[Tensor | None] = [None] * len(group)

    def keep(epoch: int) -> None:
        flat = torch.cat([p.detach().flatten(1) for p in stack.parameters], dim=1).cpu()  # (K, P)
        for place, (k, row) in enumerate(zip(group, flat, strict=True)):
            if not row.isfinite().all():
                raise FloatingPointError(
                    f"expert {k + 1}: its weights are NaN or Inf after epoch {epoch}; lower lr"
                )
            last, before[place] = before[place], row
            if last is not None and not (row - last).square().sum() > 0:  # MTT divides by it
                raise ValueError(
                    f"lr: {options.lr} is too small: expert {k + 1} does not move in epoch {epoch}"
                )
            if k in wanted:
                growing.write(k, {"parameters": row}, part=epoch)

    def advance(epoch: int, loss: float) -> None:
        keep(epoch)
        bar.update(len(wanted))
        bar.set_postfix(expert=f"{group[-1] + 1}/{options.experts}", loss=f"{loss:.3f}")

    keep(0)
    train(
        stack,
        images,
        dataset.train.labels.to(device),
        seeds,
        options.recipe(),
        mirror=dataset.mirror,
        on_epoch=advance,
    )
    accuracies = stack.accuracy(dataset.batches(dataset.test, device))
    for k, accuracy in zip(group, accuracies, strict=True):
        if k in wanted:
            growing.put(k, {"accuracy": torch.tensor(accuracy)})
            say(f"expert {k + 1} of {options.experts}: {accuracy:.1%} of test images right")


def _size(spec: str, shape: Any, num_classes: int) -> int:
    """P, how many parameters the network has, which have to be all of its state."""
    network = build_network(spec, shape[0], shape[1], num_classes)
    parameters = list(network.parameters())
    if len(parameters) < len(network.state_dict()):
        raise ValueError(
            "network: expected one whose state is parameters alone, as trajectories are, got "
            f"{spec}; take norm=instance, group, layer or none"
        )
    return sum(p.numel() for p in parameters)
