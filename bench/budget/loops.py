"""The loops that are counted: steps of the driver, at the sizes of most published results.

Counts are of what a run repeats. What is made at a first step for all others is left out, and what
stands beside a part, such as the start of a training, by counting two runs and their difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.budget.as_on_gpu import metered
from bench.budget.count import Count
from bench.budget.meter import Meter
from bench.loops.setup import Setup, Sizes
from bench.plain.inputs import write_bank
from cmidd.augment import Strategy
from cmidd.datasets import Dataset
from cmidd.datasets.streamed import Images, StreamedImages
from cmidd.interruption import Stop
from cmidd.loop import Loop
from cmidd.networks import cmi_images_per_chunk, freeze
from cmidd.networks.spec import network_outline
from cmidd.options.cmi import CMIOptions
from cmidd.options.distill import DistillOptions
from cmidd.options.pretrained import BankOptions
from cmidd.options.recipe import PUBLISHED_RECIPE, Recipe
from cmidd.options.recover import RecoverCMIOptions, RecoverOptions
from cmidd.recovery.batch import Batch, Task
from cmidd.recovery.published import settled
from cmidd.run import prepare
from cmidd.stack import Stack
from cmidd.training import train
from cmidd.training_draws import draw_epochs
from cmikernels import ClassIndex, CMIRegularizer

SIZES = Sizes()
TOGETHER = 5  # networks
WARM = 16
"""Steps of a training after which those that come again are graphs, whatever was drawn for them."""
META = torch.device("meta")

Counts = dict[str, Count]
"""By what is counted: step, update, epoch, ..."""


class Rig:
    """What the loops run on; files of networks are written into `folder`."""

    meter: Meter
    """The one of the loop under way."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def count(self, loop: str) -> Counts:
        """What one of `LOOPS` asks for."""
        with metered() as self.meter:
            return LOOPS[loop](self)

    @cached_property
    def dataset(self) -> Dataset:
        """The real images."""
        return SIZES.dataset()

    def loop(self, method: str, ipc: int, *, cmi: bool = False, **changes: Any) -> Loop:
        """The driver's loop of a run, some options of whose method are changed."""
        setup = Setup(method, SIZES, ipc, "meta", self.folder, self.dataset)
        bank = self._bank(SIZES.bank)
        self._bank(SIZES.network)
        run = prepare(
            method,
            self.dataset,
            DistillOptions(ipc, init="noise"),
            setup.options(**changes),
            CMIOptions(bank=bank, cmi_weight=2000.0) if cmi else None,
            device=META,
            say=_quiet,
        )
        self.runs += 1
        folder = run.folder(self.folder / f"run-{self.runs}")
        return Loop(run, folder, Stop(), _quiet)

    def _bank(self, spec: str) -> Path:
        """The bank that a setup takes, of one network, so that the first step reads all of it."""
        path = self.folder / f"bank-{spec}.safetensors"
        if not path.exists():
            write_bank(path, self.dataset, spec, count=1)
        return path

    def parts(self, loop: Loop, iteration: int, update: int = 0) -> Counts:
        """What an update asks for, by its parts."""
        return self.meter.count(lambda: loop.update(iteration, update, logged=False))

    def train(
        self,
        spec: str,
        x: Images,
        recipe: Recipe,
        *,
        networks: int = TOGETHER,
        tells: bool = True,
    ) -> Callable[[], object]:
        """Training of networks together, as `cmidd evaluate` and `cmidd pretrain` have it.

        `tells`: whether it is told the loss after every epoch.
        """
        stack = _stack(spec, networks)
        y = torch.zeros(len(x), dtype=torch.int64, device=META)
        strategy = Strategy.parse(recipe.augmentation)
        epochs = draw_epochs(range(networks), len(x), recipe, strategy)
        told = _ignored if tells else None
        return lambda: train(stack, x, y, recipe, strategy, epochs, on_epoch=told)


def _quiet(_: str) -> None:
    pass


def _ignored(_: int, __: float) -> None:
    pass


def _outline(spec: str) -> torch.nn.Module:
    return network_outline(spec, 3, SIZES.pixels, SIZES.classes)


def _stack(spec: str, networks: int = TOGETHER) -> Stack:
    state = _outline(spec).state_dict()
    return Stack(spec, (3, SIZES.pixels, SIZES.pixels), SIZES.classes, [state] * networks)


def _in_all(parts: Counts) -> Count:
    return sum(parts.values(), Count())


def one_update(method: str, ipc: int, rig: Rig, *, cmi: bool = False, **changes: Any) -> Counts:
    """A method whose iteration is one update, and the training of its networks."""
    loop = rig.loop(method, ipc, cmi=cmi, **changes)
    rig.parts(loop, 0)
    parts = rig.parts(loop, 1)
    training = [parts.pop(name) for name in [*parts] if name.endswith(".training")]
    return {"step": _in_all(parts), **({"training": training[0]} if training else {})}


def report(ipc: int, rig: Rig) -> Counts:
    """A line of the log, which DM writes after every tenth iteration."""
    loop = rig.loop("dm", ipc, cmi=True)
    loss, values = loop.update(0, 0, logged=True)
    loop.place.losses.append(loss)
    return {"report": rig.meter.total(lambda: loop.check_finite(loop.numbers(values)))}


def class_matching(method: str, ipc: int, rig: Rig, **changes: Any) -> Counts:
    """A method whose network learns between the updates of an iteration."""
    loop = rig.loop(method, ipc, **changes)
    name = loop.run.method.name  # type: ignore[attr-defined]
    network = rig.parts(loop, 0)[f"{name}.network"]
    parts = rig.parts(loop, 0, 1)
    training = parts.pop(f"{name}.inner_training")
    return {"network": network, "training": training, "update": _in_all(parts)}


def inner_epochs(method: str, ipc: int, rig: Rig) -> Counts:
    """DC and DSA, and an epoch of the network's training."""
    found = class_matching(method, ipc, rig, inner_epochs=WARM)
    more = class_matching(method, ipc, rig, inner_epochs=WARM + 1)
    found["inner epoch"] = more["training"] - found.pop("training")
    return found


def student(ipc: int, rig: Rig) -> Counts:
    """MTT: a step of the student, there and back."""
    one, two = (one_update("mtt", ipc, rig, student_steps=n)["step"] for n in (1, 2))
    return {"iteration of one step": one, "student step": two - one}


def evaluation(ipc: int, rig: Rig) -> Counts:
    """Networks that learn from a distilled set, and their test.

    An epoch tells its loss, a step does not.
    """
    images = torch.empty(SIZES.classes * ipc, *rig.dataset.shape, device=META)

    def epochs(count: int, tells: bool) -> Count:
        recipe = replace(PUBLISHED_RECIPE, epochs=count)
        return rig.meter.total(rig.train(SIZES.network, images, recipe, tells=tells))

    found = {"epoch": epochs(WARM + 1, True) - epochs(WARM, True)}
    found["step"] = epochs(WARM + 1, False) - epochs(WARM, False)
    stack, x = _stack(SIZES.network), torch.empty(500, *rig.dataset.shape, device=META)
    y = torch.zeros(len(x), dtype=torch.int64, device=META)
    one, two = (rig.meter.total(partial(stack.accuracy, [(x, y)] * count)) for count in (1, 2))
    found["test of 500 images"] = two - one
    return found


def pretraining(rig: Rig) -> Counts:
    """A network of the bank that learns from real images, more than are made at once."""
    recipe = replace(BankOptions().recipe(), epochs=1)

    def steps(count: int) -> Count:
        images = count * recipe.batch_size, *rig.dataset.shape
        pixels = StreamedImages.of_pixels(torch.empty(images, dtype=torch.uint8, device=META))
        seen = pixels.seen_by(rig.dataset.to_input)
        return rig.meter.total(rig.train(SIZES.bank, seen, recipe, networks=1))

    some, more = steps(WARM), steps(WARM + 1)
    return {"step": more - some}


def cmi(classes: int, ipc: int, rig: Rig, *, at_most: int = 2) -> Counts:
    """The regulariser alone, value and gradient; of more chunks than `at_most` two are counted."""
    regularizer = CMIRegularizer(freeze(_outline(SIZES.bank)), 2000.0)
    regularizer.chunk_size = chunk = cmi_images_per_chunk(META, SIZES.pixels)

    def of(classes: int) -> Count:
        images = torch.empty(classes * ipc, *rig.dataset.shape, device=META).requires_grad_()
        index = ClassIndex(torch.arange(classes).repeat_interleave(ipc)).to(META)

        def call() -> tuple[Tensor, ...]:
            return torch.autograd.grad(regularizer(images, index, step=0), images)

        call()
        return rig.meter.total(call)

    of_chunk = max(1, chunk // ipc)
    if classes <= at_most * of_chunk or classes % of_chunk:
        return {"call": of(classes)}
    one, two = of(of_chunk), of(2 * of_chunk)
    return {"call": one + (two - one) * (classes // of_chunk - 1)}


def recovery(rig: Rig) -> Counts:
    """SRe2L, a batch of one image of each class and ten of these."""
    options = RecoverOptions((Path("teacher"),), ipc=10, batch_size=100)
    options, _ = settled(rig.dataset, options, META)
    teacher = freeze(_outline(f"{SIZES.bank}:norm=batch"))
    task = Task(rig.dataset, options, RecoverCMIOptions(), [teacher], None, None, META)
    labels = torch.arange(SIZES.classes).repeat_interleave(10)
    batch = Batch(task, 0, labels, torch.arange(10).repeat(SIZES.classes))
    batch.step(0)
    return {"step": rig.meter.total(lambda: batch.step(1))}


LOOPS: dict[str, Callable[[Rig], Counts]] = {
    "DM, ipc 10": partial(one_update, "dm", 10),
    "DM, ipc 50": partial(one_update, "dm", 50),
    "DM + CMI, ipc 10": partial(one_update, "dm", 10, cmi=True),
    "DM + CMI, ipc 50": partial(one_update, "dm", 50, cmi=True),
    "DM + CMI, log": partial(report, 10),
    "DC, ipc 10": partial(inner_epochs, "dc", 10),
    "DSA, ipc 10": partial(inner_epochs, "dsa", 10),
    "MTT, ipc 10": partial(student, 10),
    "IDC, ipc 10": partial(class_matching, "idc", 10),
    "IDM, ipc 10": partial(one_update, "idm", 10),
    "IID, ipc 10": partial(one_update, "iid", 10),
    "NCFM, ipc 10": partial(one_update, "ncfm", 10),
    "five ConvNets on ipc 10": partial(evaluation, 10),
    "ResNet-18 on real images": pretraining,
    "CMI, 10 x 50": partial(cmi, 10, 50),
    "CMI, 100 x 50": partial(cmi, 100, 50),
    "SRe2L, ipc 10": recovery,
}
