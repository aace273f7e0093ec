"""The loop around every method: images, optimiser, regulariser, log, checkpoint, result.

    images <- images - lr * momentum average of d (loss of the method + weight x CMI) / d images

A method is a class with a `step(images, iteration)` that gives its loss and gradient. All that is
drawn depends on the seed and the iteration alone, so images, momentum and the iteration's number
are everything that a checkpoint needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd import presets
from cmidd.bank import Bank
from cmidd.datasets import Dataset
from cmidd.dm import DM, DMOptions
from cmidd.files import FileError
from cmidd.run import RunFolder, versions
from cmidd.synthetic import SyntheticSet, start
from cmikernels import ClassIndex, CMIRegularizer

METHODS = {"dm": (DM, DMOptions)}


@dataclass(frozen=True)
class DistillOptions:
    """The distilled images and the loop.

    Args:
        ipc: images per class
        init: first images: real, noise, mix (of two real ones) or file:PATH (a synthetic set)
        iterations: updates of the images
        lr_images: step size on the images; default as published, 1, and 10 from ipc 100 on
        momentum: of the steps on the images
        seed: of everything that is drawn
        report_every: iterations from one line of the log to the next
        checkpoint_every: iterations from one checkpoint to the next
    """

    ipc: int = 10
    init: str = "real"
    iterations: int = 20000
    lr_images: float | None = None
    momentum: float = 0.5
    seed: int = 0
    report_every: int = 10
    checkpoint_every: int = 500


@dataclass(frozen=True)
class CMIOptions:
    """The regulariser.

    Args:
        bank: file of trained networks, made by cmidd pretrain; without one there is no CMI
        cmi_weight: its weight; default the published one for method, dataset and ipc
        cmi_layer: features (the embedding), logits, or the name of a layer
        cmi_centroids: compare images with the mean of their own class, or with that of real data
        cmi_networks: networks a step averages over
        cmi_every: apply it in every k-th step only (another algorithm than the published one)
        cmi_chunk: images that go through a network at once; memory grows with it, not with ipc
    """

    bank: Path | None = None
    cmi_weight: float | None = None
    cmi_layer: str = "features"
    cmi_centroids: str = "own"
    cmi_networks: int = 1
    cmi_every: int = 1
    cmi_chunk: int = 50


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
    images, labels = start(dataset, options.ipc, options.init, options.seed)
    images = images.to(device).requires_grad_()
    method = METHODS[method_name][0](dataset, labels, method_options, options.seed, device)
    regularizer, weight = _regularizer(method_name, dataset, options, cmi, device, say)
    classes = ClassIndex(labels.to(device), dataset.num_classes)
    rate = presets.dm_learning_rate(options.ipc) if options.lr_images is None else options.lr_images
    optimizer = torch.optim.SGD([images], lr=rate, momentum=options.momentum)
    first = _restore(folder, images, optimizer)
    with (
        folder.logging(first),
        tqdm(
            total=options.iterations,
            initial=first,
            desc=f"distilling with {method_name}",
            unit="it",
        ) as bar,
    ):
        for iteration in range(first, options.iterations):
            done = iteration + 1
            last = done == options.iterations
            reports = last or done % options.report_every == 0
            saves = not last and done % options.checkpoint_every == 0
            loss, gradient = method.step(images, iteration)
            value = torch.zeros((), device=device)
            since = iteration % cmi.cmi_every  # steps since the last with CMI
            if regularizer is not None and since == 0:
                value = regularizer(images, classes, step=iteration)
                gradient += torch.autograd.grad(value, images)[0]
            elif regularizer is not None and reports:  # for the log: without it the curve is 0 here
                value = regularizer(images.detach(), classes, step=iteration - since)
            images.grad = gradient
            optimizer.step()
            bar.update()
            if reports or saves:
                numbers = {"loss": loss.item(), "cmi": value.item() / weight if weight else 0.0}
                _check_finite(numbers, images, iteration, folder)
            if reports:
                folder.log(iteration, {**numbers, "weighted_cmi": value.item()})
                bar.set_postfix({name: f"{number:.4g}" for name, number in numbers.items()})
            if saves:
                _save(folder, done, images, optimizer)
    result = SyntheticSet(
        images.detach().cpu(),
        labels,
        {
            **dataset.describe(),
            "class_names": list(dataset.class_names),
            "ipc": options.ipc,
            "method": method_name,
            "cmi_weight": weight,
            "seed": options.seed,
            "command": command,
            "config": folder.config,
            "versions": versions(),
        },
    )
    result.save(folder.result)
    return result


def _regularizer(
    method_name: str,
    dataset: Dataset,
    options: DistillOptions,
    cmi: CMIOptions,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[CMIRegularizer | None, float]:
    """The regulariser and its weight, or None where there is none or it would be 0."""
    if cmi.bank is None:
        if cmi != CMIOptions():
            raise ValueError("bank: expected the file of a bank, as other options of CMI are given")
        return None, 0.0
    if options.ipc == 1 and cmi.cmi_centroids == "own":
        say(
            "CMI of one image per class is 0 whatever the image: left out; "
            "with cmi_centroids real it is not"
        )
        return None, 0.0
    if cmi.cmi_centroids not in ("own", "real"):
        raise ValueError(f"cmi_centroids: expected own or real, got {cmi.cmi_centroids!r}")
    if cmi.cmi_weight is None:
        chosen = presets.cmi_weight(method_name, dataset.name, options.ipc)
        usual = cmi.cmi_layer == "features" and cmi.cmi_centroids == "own"
        note = "" if usual else ", for embeddings and the images' own means; try others"
        say(f"weight of CMI: {chosen.value:g} ({chosen.origin}{note})")
        weight = chosen.value
    else:
        weight = cmi.cmi_weight
    bank = Bank.load(cmi.bank, device)
    dataset.check_made_for(bank.record, f"bank: {cmi.bank}")
    regularizer = CMIRegularizer(
        bank,
        weight,
        chunk_size=cmi.cmi_chunk,
        layer=cmi.cmi_layer,
        networks_per_step=cmi.cmi_networks,
        every=cmi.cmi_every,
        seed=options.seed,
    )
    if cmi.cmi_centroids == "real":
        say(f"class centroids of the real images, by {len(bank)} networks")
        batches = tqdm(dataset.batches(dataset.train, device), "real images", unit="batch")
        regularizer.centroids = regularizer.real_centroids(batches, dataset.num_classes)
    return regularizer, weight


def _restore(folder: RunFolder, images: Tensor, optimizer: torch.optim.SGD) -> int:
    """Put a checkpoint back; the iteration to go on with."""
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        return 0
    tensors, iteration = checkpoint
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "images" not in shapes or set(shapes.values()) != {tuple(images.shape)}:
        raise FileError(
            f"{folder.path}: expected a checkpoint with images of shape {tuple(images.shape)}, got "
            f"{shapes}"
        )
    with torch.no_grad():
        images.copy_(tensors["images"])
    if "momentum" in tensors:
        optimizer.state[images]["momentum_buffer"] = tensors["momentum"].to(images.device)
    return iteration


def _save(folder: RunFolder, done: int, images: Tensor, optimizer: torch.optim.SGD) -> None:
    tensors = {"images": images}
    momentum = optimizer.state[images].get("momentum_buffer")
    if momentum is not None:
        tensors["momentum"] = momentum
    folder.save_checkpoint(done, tensors)


def _check_finite(
    numbers: dict[str, float], images: Tensor, iteration: int, folder: RunFolder
) -> None:
    """What comes before every line of the log and every file, so that none keeps a NaN."""
    largest = {**numbers, "largest pixel": images.detach().abs().max().item()}
    if all(math.isfinite(number) for number in largest.values()):
        return
    text = ", ".join(f"{name} {number:g}" for name, number in largest.items())
    raise FloatingPointError(
        f"iteration {iteration}: {text}. The steps are too long: take a smaller lr_images or "
        f"cmi_weight, and another folder; {folder.path} keeps the last checkpoint"
    )
