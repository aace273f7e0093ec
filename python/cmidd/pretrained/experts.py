"""Experts for MTT: networks trained on the real images, with their parameters after every epoch.

`parameters` (experts, epochs + 1, P) float32 has the flat parameters, each of `named_parameters()`
in order, before the first epoch and after each; `accuracy` (experts,) float32 says what they reach
on the test images in the end, `trained` (experts,) uint8 which are done. The file grows epoch by
epoch, as `growing_file.py` says, so that training takes the memory of a few networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd import ranks
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.device import usable_device, with_precision
from cmidd.networks import build_network
from cmidd.networks.layers import Convolution
from cmidd.networks.usual import gradient_network
from cmidd.options.fields import fill_in
from cmidd.options.pretrained import ExpertOptions
from cmidd.pretrained.filler import TrainingTask, fill
from cmidd.seeds import seed_of
from cmidd.stack import Stack
from cmidd.storage.growing_file import CRC_OF, GrowingFile, check_complete, check_piece
from cmidd.storage.lock import locked
from cmidd.storage.output import in_words
from cmidd.storage.tensor_file import FileError, opened

KIND = "set of experts"
_PUBLISHED = {"experts": 100, "epochs": 50, "lr": 0.01}
# By which the settings of MTT for these images were found.
_OURS = {"digits": {"experts": 10, "epochs": 15, "lr": 0.05}}


class Experts:
    """The trajectories of a complete file, which stay on disk."""

    def __init__(self, path: Path, record: dict[str, Any], kept: Tensor | None = None) -> None:
        self.record = record
        self._path = path
        self._kept = kept  # which numbers of a row are parameters today; None: all

    @classmethod
    def load(cls, path: Path | str) -> Experts:
        """Check a complete file; of the trajectories nothing is read."""
        path = Path(path)
        check_complete(path, KIND)
        with opened(path, KIND) as (file, record):
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {
                name: (s.get_dtype(), s.get_shape())
                for name, s in slices.items()
                if not name.startswith(CRC_OF)
            }
            try:
                count, epochs = record["experts"], record["epochs"]
                network = record["network"], record["shape"], record["num_classes"]
                older, kept = _parameters_of_older(*network), None
                parameters = ("F32", [count, epochs + 1, parameter_count(*network)])
                if (
                    found.get("parameters")
                    == ("F32", [count, epochs + 1, len(older)])
                    != parameters
                ):
                    parameters, kept = found["parameters"], older
                expected = {
                    "parameters": parameters,
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
        return cls(path, record, kept)

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
            if CRC_OF + "parameters" in file.keys():  # noqa: SIM118  # which older files lack
                crc = file.get_slice(CRC_OF + "parameters")[expert, epoch]
                check_piece(self._path, f"expert {expert + 1}, epoch {epoch},", row, crc)
        return row if self._kept is None else row[self._kept]


def fill_in_experts(dataset: Dataset, options: ExpertOptions) -> tuple[ExpertOptions, str]:
    """Options with what suits the dataset in the place of what was not given, and a line of it."""
    ours = _OURS.get(dataset.name)
    options, filled = fill_in(options, ours or _PUBLISHED)
    whose = f"ours for {dataset.name}" if ours else "MTT's published default"
    words = ", ".join(f"{name} {value}" for name, value in filled.items())
    return options, f"{words} ({whose})" if words else ""


def train_experts(
    path: Path | str,
    dataset: Dataset,
    options: ExpertOptions,
    device: torch.device | str | None = None,
    *,
    resume: bool = False,
    command: str = "",
    say: Callable[[str], None] = tqdm.write,
) -> Experts:
    """Train the experts that are not there yet, and give back all of them.

    Args:
        path: file of the trajectories.
        dataset: what they learn.
        options: of the experts; of a file that is there, only their number may change, to more.
        device: default: a GPU where there is one.
        resume: go on with the file that was begun there.
        command: that makes the same again, for the record.
        say: told each expert's accuracy.
    """
    path, place = Path(path), usable_device(device)
    (options,) = with_precision((fill_in_experts(dataset, options)[0],), place)
    Strategy.parse(options.augmentation)
    settings = {name: value for name, value in asdict(options).items() if name != "together"}
    spec = settings["network"] = options.network or gradient_network(dataset.shape.height)
    size = parameter_count(spec, dataset.shape, dataset.num_classes)
    with ranks.only_first(lambda: locked(path)):
        growing = ranks.from_first(
            lambda: GrowingFile(
                path,
                KIND,
                {**dataset.describe(), **settings},
                options.experts,
                {
                    "parameters": torch.empty(options.epochs + 1, size, device="meta"),
                    "accuracy": torch.empty(()),
                },
                parts={"parameters": options.epochs + 1},
                resume=resume,
                what=KIND,
                lower="experts or epochs",
                grows="experts",
                noted={"command": command},
            )
        )
        missing = len(ranks.from_first(growing.missing))
        if missing:
            steps = missing * options.epochs * math.ceil(len(dataset.train) / options.batch_size)
            say(
                f"{path} takes {in_words(growing.size)} ({in_words(growing.free)} free there): "
                f"experts to train: {missing}, steps in all: {steps:,}"
            )
        seeds = [seed_of(options.seed, "experts", k) for k in range(options.experts)]
        fill(
            growing,
            TrainingTask("expert", spec, options.recipe(), seeds, options.together),
            dataset,
            place,
            at_the_end=lambda *_: {},
            after_epoch=_Trajectories(growing, options.lr),
            say=say,
        )
        ranks.from_first(growing.complete)
    return Experts.load(path)


class _Trajectories:
    """Puts the weights of experts into the file, epoch by epoch, if they move."""

    def __init__(self, growing: GrowingFile, lr: float) -> None:
        self.growing, self.lr = growing, lr
        self.before: Tensor | None = None  # weights, unless training goes on in this epoch

    def __call__(self, stack: Stack, group: range, wanted: set[int], epoch: int) -> None:
        flat = torch.cat([p.detach().flatten(1) for p in stack.parameters], dim=1).cpu()  # (K, P)
        for place, k in enumerate(group):
            if not flat[place].isfinite().all():
                raise FloatingPointError(
                    f"expert {k + 1}: its weights are NaN or Inf after epoch {epoch}; lower lr"
                )
            before = self.before if epoch else None
            moved = before is None or (flat[place] - before[place]).square().sum() > 0
            if not moved:  # MTT divides by it
                raise ValueError(
                    f"lr: {self.lr} is too small: expert {k + 1} does not move in epoch {epoch}"
                )
            if k in wanted:
                self.growing.write(k, {"parameters": flat[place]}, part=epoch)
        self.before = flat


def parameter_count(spec: str, shape: Any, num_classes: int) -> int:
    """P, how many parameters the network has, which have to be all of its state."""
    network = build_network(spec, shape[0], shape[1], num_classes)
    parameters = list(network.parameters())
    if len(parameters) < len(network.state_dict()):
        raise ValueError(
            "network: expected one whose state is parameters alone, as trajectories are, got "
            f"{spec}; take norm=instance, group, layer or none"
        )
    return sum(p.numel() for p in parameters)


def _parameters_of_older(spec: str, shape: Any, num_classes: int) -> Tensor:
    """(P,) bool for a row of a file from when convolutions had biases before instance norm too."""
    kept: list[Tensor] = []
    for module in build_network(spec, shape[0], shape[1], num_classes).modules():
        kept += [p.new_ones(p.numel(), dtype=torch.bool) for p in module.parameters(recurse=False)]
        if isinstance(module, Convolution) and module.bias is None:
            kept.append(torch.zeros(module.out_channels, dtype=torch.bool))
    return torch.cat(kept)
