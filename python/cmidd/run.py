"""The loop around every method: images, optimiser, regulariser, log, checkpoint, result.

    images <- images - lr * momentum average of d (loss of the method + weight x CMI) / d images

and likewise, each with its own lr, what a method learns beside the images. A method is a `Method`
(`methods/base.py`) and a line of the table in `methods/__init__.py`. `prepare` settles the options
and makes a `Run`; `distill` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function
from tqdm import tqdm

from cmidd import checkpoint
from cmidd.datasets import Dataset
from cmidd.device import usable_device
from cmidd.first_images import check_view, first_images
from cmidd.methods import (
    Method,
    cmi_weight,
    evaluation_of,
    fill_in_published,
    method_entry,
)
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import Options
from cmidd.regularization import CMITerm
from cmidd.storage.run_folder import RunFolder, versions
from cmidd.synthetic import SyntheticSet


@dataclass(eq=False)
class Run:
    """A run that is settled and set up, and serves once."""

    method_name: str
    dataset: Dataset
    options: DistillOptions
    method_options: Any
    cmi_options: CMIOptions
    filled_in: str
    """What was not given and is known, and where it comes from, in words for the user."""
    method: Method
    images: Tensor
    """The stored images, a leaf on the device."""
    labels: Tensor
    """Of the stored images, on the CPU."""
    cmi: CMITerm
    begun: bool = False
    """Whether `distill` has taken it."""

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Everything that is optimised."""
        extra = {name: each.tensor for name, each in self.method.extra_parameters.items()}
        return {"images": self.images, **extra}

    def folder(self, path: Path | str, *, resume: bool = False) -> RunFolder:
        """The folder of this run, new or, with `resume`, begun before."""
        parts = (self.options, self.cmi_options, self.method_options)
        return run_folder(path, self.method_name, self.dataset, parts, resume=resume)


def run_folder(
    path: Path | str,
    method_name: str,
    dataset: Dataset,
    parts: Sequence[Options],
    *,
    resume: bool,
    asked: Mapping[str, Any] | None = None,
) -> RunFolder:
    """The folder of a run with these options, which have been filled in.

    `asked`: how the dataset was asked for, which a name need not say.
    """
    of_data = {"dataset": dataset.name, "zca": dataset.whitening is not None}
    settings: dict[str, Any] = {"method": method_name, **(of_data if asked is None else asked)}
    for part in parts:
        settings |= asdict(part)
    plain = {name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}
    return RunFolder(Path(path), plain, resume=resume)


def prepare(
    method_name: str,
    dataset: Dataset,
    options: DistillOptions | None = None,
    method_options: Options | None = None,
    cmi: CMIOptions | None = None,
    *,
    device: torch.device | str | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Fill in what is published, and set up a run.

    Args:
        method_name: one of `METHODS`.
        dataset: the real images.
        options: of the loop.
        method_options: of the method, in its own class of options.
        cmi: the regulariser; default: none.
        device: default: a GPU where there is one.
        say: told what the user may not expect.
    """
    entry = method_entry(method_name)
    options, cmi = options or DistillOptions(), cmi or CMIOptions()
    if method_options is None:
        required = [each.name for each in fields(entry.options) if each.default is MISSING]
        if required:
            raise ValueError(
                f"method_options: {method_name} needs {', '.join(required)}; give "
                f"{entry.options.__name__}(...)"
            )
        method_options = entry.options()
    if not isinstance(method_options, entry.options):
        raise TypeError(
            f"method_options: expected {entry.options.__name__} for {method_name}, got "
            f"{type(method_options).__name__}"
        )
    options, method_options, filled_in = fill_in_published(
        method_name, dataset, options.ipc, options, method_options
    )
    place = usable_device(device)
    images, labels = first_images(dataset, options.ipc, options.init, options.seed)
    images = images.to(place).requires_grad_()
    method = entry.make(dataset, labels, method_options, options.seed, place)
    check_view(options.init, method.view)

    def weight() -> float:
        known = cmi_weight(method_name, dataset.name, options.ipc)
        usual = cmi.cmi_layer == "features" and cmi.cmi_centroids == "own"
        note = "" if usual else ", for embeddings and the images' own means; try others"
        say(f"weight of CMI: {known.value:g} ({known.origin}{note})")
        return known.value

    term = CMITerm(cmi, dataset, images, labels, method, options.seed, weight=weight, say=say)
    return Run(
        method_name, dataset, options, method_options, cmi, filled_in, method, images, labels, term
    )


def distill(
    run: Run, folder: RunFolder, command: str = "", say: Callable[[str], None] = print
) -> SyntheticSet:
    """Run a method to its end, going on from the folder's checkpoint if it has one.

    Args:
        run: from `prepare`; it serves once.
        folder: from `Run.folder`, where everything is written.
        command: that makes the same again, for the record.
        say: told what the user may not expect.
    """
    if folder.finished:
        say(f"{folder.path} is finished already")
        return SyntheticSet.load(folder.result)
    if run.begun:
        raise RuntimeError(
            "run: its images have moved already; prepare another, and give its folder resume=True "
            "to go on from a checkpoint"
        )
    run.begun = True
    method, options, images = run.method, run.options, run.images
    leaves = run.leaves
    rates = [options.lr_images, *(each.lr for each in method.extra_parameters.values())]
    optimizer = method.optimizer(
        [{"params": [leaf], "lr": lr} for leaf, lr in zip(leaves.values(), rates, strict=True)],
        options.momentum,
    )
    scale = None
    if method.class_scale is not None:
        scale = method.class_scale[run.labels].to(images).view(-1, 1, 1, 1)
    run.cmi.measure_real_means(say)
    made_with = {**method.input_records, **run.cmi.input_records}
    first = checkpoint.restore(folder, leaves, optimizer, method, made_with)
    with (
        folder.logging(first),
        tqdm(
            total=options.iterations * method.updates,
            initial=first * method.updates,
            desc=f"distilling with {run.method_name}",
            unit="update",
        ) as bar,
    ):
        for iteration in range(first, options.iterations):
            done = iteration + 1
            last = done == options.iterations
            reports = last or done % options.report_every == 0
            saves = not last and done % options.checkpoint_every == 0
            losses: list[Tensor] = []
            for update in range(method.updates):
                with record_function("draws"):
                    draws = method.draw(iteration, update)
                loss, gradient = method.loss_and_gradient(images, draws)
                logged = reports and update == method.updates - 1
                with record_function("cmi"):
                    value = run.cmi.add(images, gradient, iteration, update, logged=logged)
                losses.append(loss)
                with record_function("images_step"):
                    images.grad = gradient if scale is None else gradient * scale
                    optimizer.step()
                    method.constrain()
                bar.update()
            if not (reports or saves):
                continue
            weighted = value.item()
            numbers = {
                "loss": torch.stack(losses).mean().item(),
                "cmi": weighted / run.cmi.weight if run.cmi.weight else 0.0,
                **{name: number.item() for name, number in method.log_values().items()},
            }
            _check_finite(run, numbers, iteration, folder)
            if reports:
                folder.log(iteration, {**numbers, "weighted_cmi": weighted})
                bar.set_postfix({name: f"{number:.4g}" for name, number in numbers.items()})
            if saves:
                about = {**run.dataset.describe(), **_view_record(method), "made_with": made_with}
                checkpoint.save(folder, done, leaves, optimizer, method, about)
    about = {
        "ipc": options.ipc,
        "method": run.method_name,
        "network": method.network_spec,
        "evaluation": evaluation_of(run.method_name, run.dataset, options.ipc),
        **_view_record(method),
        "made_with": made_with,
        "cmi_weight": run.cmi.weight,
        "seed": options.seed,
        "command": command,
        "config": folder.config,
        "versions": versions(),
    }
    result = SyntheticSet.of(run.dataset, images.detach().cpu(), run.labels, about)
    result = method.finish(result)
    result.save(folder.result)
    return result


def _view_record(method: Method) -> dict[str, Any]:
    return {} if method.view is None else {"view": method.view.as_record()}


def _check_finite(
    run: Run, numbers: Mapping[str, float], iteration: int, folder: RunFolder
) -> None:
    """What comes before every line of the log and every file, so that none keeps a NaN."""
    leaves = run.leaves
    largest = {
        f"largest of {name}": leaf.detach().abs().max().item() for name, leaf in leaves.items()
    }
    largest = {**numbers, **largest}
    if all(math.isfinite(number) for number in largest.values()):
        return
    suspects = [*(f"lr_{name}" for name in leaves), *run.method.options_that_may_diverge]
    if run.cmi.weight:
        suspects.append("cmi_weight")
    text = ", ".join(f"{name} {number:g}" for name, number in largest.items())
    kept = f"; --init=file:{folder.checkpoint} starts from the last good images"
    raise FloatingPointError(
        f"iteration {iteration}: {text}. The steps are too long: take a smaller "
        f"{' or '.join(suspects)}, and another folder{kept if folder.has_checkpoint else ''}"
    )
