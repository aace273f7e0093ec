"""The loop around every method: images, optimiser, regulariser, log, checkpoint, result.

    images <- images - lr * momentum average of d (loss of the method + weight x CMI) / d images

and likewise, each with its own lr, what a method learns beside the images. A method is a `Method`
(`methods/base.py`) and a line of the table in `methods/__init__.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from tqdm import tqdm

from cmidd.datasets import Dataset
from cmidd.methods import evaluation_of, method_entry, settle
from cmidd.regularization import CMIOptions, Regularization
from cmidd.storage.run_folder import RunFolder, versions
from cmidd.storage.tensor_file import FileError
from cmidd.synthetic import SyntheticSet, start


@dataclass(frozen=True)
class DistillOptions:
    """The distilled images and the loop.

    Args:
        ipc: images per class
        init: first images: real, noise, mix (of two real ones) or file:PATH (those of a set or of a
            checkpoint); default: as published for the method, which --dry_run prints
        iterations: of the method; default: as published for it
        lr_images: step size on the images; default: as published for the method, dataset and ipc
        momentum: of the steps on the images and on what is learned beside them
        seed: of everything that is drawn
        report_every: iterations from one line of the log to the next; default: as suits the method
        checkpoint_every: iterations from one checkpoint to the next; default: as suits the method
    """

    ipc: int = 10
    init: str | None = None
    iterations: int | None = None
    lr_images: float | None = None
    momentum: float = 0.5
    seed: int = 0
    report_every: int | None = None
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        if self.lr_images is not None and not 0 < self.lr_images < math.inf:
            raise ValueError(f"lr_images: expected more than 0, got {self.lr_images}")
        if not 0 <= self.momentum < math.inf:
            raise ValueError(f"momentum: expected at least 0, got {self.momentum}")


def distill(
    method_name: str,
    dataset: Dataset,
    options: DistillOptions,
    cmi: CMIOptions,
    method_options: Any,
    folder: RunFolder,
    device: torch.device,
    command: str = "",
    say: Callable[[str], None] = print,
) -> SyntheticSet:
    """Run a method to its end, going on from the folder's checkpoint if it has one."""
    if folder.finished:
        say(f"{folder.path} is finished already")
        return SyntheticSet.load(folder.result)
    entry = method_entry(method_name)
    options, method_options, _ = settle(method_name, dataset, options, method_options)
    assert options.iterations is not None
    assert options.report_every is not None
    assert options.checkpoint_every is not None
    assert options.init is not None
    images, labels = start(dataset, options.ipc, options.init, options.seed)
    images = images.to(device).requires_grad_()
    method = entry.make(dataset, labels, method_options, options.seed, device)
    regularization = Regularization(
        method_name, dataset, labels, options.seed, cmi, device, say, method.rows(0)
    )
    leaves = {"images": images, **{name: each.tensor for name, each in method.learned.items()}}
    rates = [options.lr_images, *(each.lr for each in method.learned.values())]
    optimizer = torch.optim.SGD(
        [{"params": [leaf], "lr": lr} for leaf, lr in zip(leaves.values(), rates, strict=True)],
        momentum=options.momentum,
    )
    made_with = {**method.made_with, **regularization.made_with}
    first = _restore(folder, leaves, optimizer, made_with)
    with (
        folder.logging(first),
        tqdm(
            total=options.iterations * method.updates,
            initial=first * method.updates,
            desc=f"distilling with {method_name}",
            unit="update",
        ) as bar,
    ):
        for iteration in range(first, options.iterations):
            done = iteration + 1
            last = done == options.iterations
            reports = last or done % options.report_every == 0
            saves = not last and done % options.checkpoint_every == 0
            rows = method.rows(iteration)
            losses: list[Tensor] = []
            for update in range(method.updates):
                loss, gradient = method.step(images, iteration, update)
                logged = reports and update == method.updates - 1
                with record_function("cmi"):
                    value = regularization.add(images, gradient, iteration, rows, logged=logged)
                losses.append(loss)
                images.grad = gradient
                with record_function("images_step"):
                    optimizer.step()
                    method.constrain()
                bar.update()
            if not (reports or saves):
                continue
            weighted = value.item()
            numbers = {
                "loss": torch.stack(losses).mean().item(),
                "cmi": weighted / regularization.weight if regularization.weight else 0.0,
                **{name: number.item() for name, number in method.numbers().items()},
            }
            suspects = [*(f"lr_{name}" for name in leaves), *method.suspects]
            if regularization.weight:
                suspects.append("cmi_weight")
            _check_finite(numbers, leaves, iteration, folder, suspects)
            if reports:
                folder.log(iteration, {**numbers, "weighted_cmi": weighted})
                bar.set_postfix({name: f"{number:.4g}" for name, number in numbers.items()})
            if saves:
                _save(
                    folder, done, leaves, optimizer, {**dataset.describe(), "made_with": made_with}
                )
    about = {
        "ipc": options.ipc,
        "method": method_name,
        "network": method.spec,
        "evaluation": evaluation_of(method_name, dataset, options.ipc),
        "made_with": made_with,
        "cmi_weight": regularization.weight,
        "seed": options.seed,
        "command": command,
        "config": folder.config,
        "versions": versions(),
    }
    result = method.finished(SyntheticSet.of(dataset, images.detach().cpu(), labels, about))
    result.save(folder.result)
    return result


def _restore(
    folder: RunFolder,
    leaves: dict[str, Tensor],
    optimizer: torch.optim.SGD,
    made_with: dict[str, Any],
) -> int:
    """Put a checkpoint back; the iteration to go on with."""
    checkpoint = folder.load_checkpoint(made_with)
    if checkpoint is None:
        return 0
    tensors, iteration = checkpoint
    expected = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    momenta = {_momentum_of(name): shape for name, shape in expected.items()}
    if found not in (expected, expected | momenta):
        raise FileError(f"{folder.path}: expected a checkpoint with {expected}, got {found}")
    for name, leaf in leaves.items():
        with torch.no_grad():
            leaf.copy_(tensors[name])
        if _momentum_of(name) in tensors:
            momentum = tensors[_momentum_of(name)].to(leaf.device)
            optimizer.state[leaf]["momentum_buffer"] = momentum
    return iteration


def _save(
    folder: RunFolder,
    done: int,
    leaves: dict[str, Tensor],
    optimizer: torch.optim.SGD,
    about: dict[str, Any],
) -> None:
    tensors = dict(leaves)
    for name, leaf in leaves.items():
        momentum = optimizer.state[leaf].get("momentum_buffer")
        if momentum is not None:
            tensors[_momentum_of(name)] = momentum
    folder.save_checkpoint(done, tensors, about)


def _momentum_of(name: str) -> str:
    """What a checkpoint calls the momentum of a leaf."""
    return f"momentum of {name}"


def _check_finite(
    numbers: dict[str, float],
    leaves: dict[str, Tensor],
    iteration: int,
    folder: RunFolder,
    suspects: list[str],
) -> None:
    """What comes before every line of the log and every file, so that none keeps a NaN."""
    largest = {
        f"largest of {name}": leaf.detach().abs().max().item() for name, leaf in leaves.items()
    }
    largest = {**numbers, **largest}
    if all(math.isfinite(number) for number in largest.values()):
        return
    text = ", ".join(f"{name} {number:g}" for name, number in largest.items())
    kept = f"; --init=file:{folder.checkpoint} starts from the last good images"
    raise FloatingPointError(
        f"iteration {iteration}: {text}. The steps are too long: take a smaller "
        f"{' or '.join(suspects)}, and another folder{kept if folder.has_checkpoint else ''}"
    )
