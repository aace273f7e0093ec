"""A run, set up: `prepare` fills in what is published and makes a `Run`, which `loop.py` runs.

A method is a `Method` (`methods/base.py`) and a line of the table in `methods/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.device import precision_on, usable_device, with_precision
from cmidd.first_images import class_by_class, first_images
from cmidd.infonce_term import InfoNCETerm
from cmidd.methods import (
    Method,
    cmi_weight,
    fill_in_published,
    method_entry,
)
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.fields import Options
from cmidd.options.infonce import InfoNCEOptions
from cmidd.regularization import CMITerm, with_chunk
from cmidd.storage.run_folder import RunFolder
from cmidd.term import Term


@dataclass(eq=False)
class Run:
    """A run that is settled and set up, and serves once."""

    method_name: str
    dataset: Dataset
    options: DistillOptions
    method_options: Any
    cmi_options: CMIOptions
    infonce_options: InfoNCEOptions
    filled_in: str
    """What was not given and is known, and where it comes from, in words for the user."""
    method: Method
    images: Tensor
    """The stored images, a leaf on the device."""
    labels: Tensor
    """Of the stored images, on the CPU."""
    cmi: CMITerm
    infonce: InfoNCETerm
    begun: bool = False
    """Whether `distill` has taken it."""

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Everything that is optimised."""
        extra = {name: each.tensor for name, each in self.method.extra_parameters.items()}
        return {"images": self.images, **extra}

    @property
    def terms(self) -> list[Term]:
        """What is added to the method's loss: CMI, and InfoNCE where it has a weight."""
        return [self.cmi, self.infonce] if self.infonce.weight else [self.cmi]

    def folder(self, path: Path | str, *, resume: bool = False) -> RunFolder:
        """The folder of this run, new or, with `resume`, begun before."""
        parts = (self.options, self.cmi_options, self.infonce_options, self.method_options)
        return run_folder(path, self.method_name, self.dataset, parts, resume=resume)


def run_folder(
    path: Path | str,
    method_name: str,
    dataset: Dataset,
    parts: Sequence[Options],
    *,
    resume: bool,
    asked: Mapping[str, Any] | None = None,
    may_grow: Sequence[str] = ("iterations",),
) -> RunFolder:
    """The folder of a run with these options, which have been filled in.

    Where there are several ranks, the first looks at it.

    `asked`: how the dataset was asked for, which a name need not say; `may_grow`: counts of which
    more may be asked for when it goes on.
    """
    of_data = {
        "dataset": dataset.name,
        "zca": dataset.whitening is not None,
        "held_out": dataset.held_out,
    }
    settings: dict[str, Any] = {"method": method_name, **(of_data if asked is None else asked)}
    for part in parts:
        # Omit InfoNCE where it is none, so that runs without it are what they were before.
        if not isinstance(part, InfoNCEOptions) or part.mim_weight:
            settings |= asdict(part)
    plain = {name: _plain(value) for name, value in settings.items()}
    return ranks.from_first(lambda: RunFolder(Path(path), plain, resume=resume, may_grow=may_grow))


def _plain(value: Any) -> Any:
    """What YAML and JSON can hold, and give back as it was."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def prepare(
    method_name: str,
    dataset: Dataset,
    options: DistillOptions | None = None,
    method_options: Options | None = None,
    cmi: CMIOptions | None = None,
    *,
    infonce: InfoNCEOptions | None = None,
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
        infonce: class-positive InfoNCE; default: none.
        device: default: a GPU where there is one.
        say: told what the user may not expect.

    Example:
        >>> data = cmidd.load_dataset("digits")
        >>> run = cmidd.prepare("dm", data, cmidd.DistillOptions(ipc=10))
        >>> run.images.shape, run.options.iterations
        (torch.Size([100, 1, 8, 8]), 20000)
    """
    entry = method_entry(method_name)
    options, cmi = options or DistillOptions(), cmi or CMIOptions()
    infonce = infonce or InfoNCEOptions()
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
    method_options, cmi = with_precision((method_options, cmi), place)
    cmi = with_chunk(cmi, place, dataset.shape.height, is_used=cmi.bank is not None)
    labels = class_by_class(dataset, options.ipc)
    method = entry.make(dataset, labels, method_options, options.seed, place)
    if ranks.count() > 1 and not method.shares_work:
        raise ValueError(
            f"ranks: {method_name} does not share its work; expected one process, got "
            f"{ranks.count()}"
        )
    images, _ = first_images(dataset, options.ipc, options.init, options.seed, view=method.view)
    images = images.to(place).requires_grad_()

    def weight() -> float:
        known = cmi_weight(method_name, dataset.name, options.ipc)
        usual = cmi.cmi_layer == "features" and cmi.cmi_centroids == "own"
        note = "" if usual else ", for embeddings and the images' own means; try others"
        say(f"weight of CMI: {known.value:g}, {known.origin}{note}")
        return known.value

    of_term = dataset, images, labels, method, options.seed
    precision = precision_on(place, getattr(method_options, "precision", None))
    return Run(
        method_name,
        dataset,
        options,
        method_options,
        cmi,
        infonce,
        filled_in,
        method,
        images,
        labels,
        CMITerm(cmi, *of_term, weight=weight, say=say),
        InfoNCETerm(infonce, *of_term, precision=precision),
    )
