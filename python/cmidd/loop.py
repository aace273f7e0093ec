"""The loop around every method: images, optimiser, regulariser, log, checkpoint, result.

    images <- images - lr * momentum average of d (loss of the method + weight x CMI) / d images

with InfoNCE where it is asked for, and likewise, each with its own lr, what a method learns beside
the images. Where there are several ranks, each adds its share of loss and gradients, and all of
them take the same step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cmidd import checkpoint, ranks
from cmidd.divergence import signs_of_divergence
from cmidd.interruption import Stop, deferred
from cmidd.methods import Method, evaluation_of
from cmidd.progress import progress
from cmidd.run import Run
from cmidd.storage.run_folder import RunFolder, read_log, versions
from cmidd.synthetic import SyntheticSet
from cmidd.term import Term


def distill(
    run: Run, folder: RunFolder, command: str = "", say: Callable[[str], None] = print
) -> SyntheticSet:
    """Run a method to its end, going on from the folder's checkpoint if it has one.

    Args:
        run: from `prepare`; it serves once.
        folder: from `Run.folder`, where everything is written.
        command: that makes the same again, for the record.
        say: told what the user may not expect.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the update under way was finished and a checkpoint
            written, from which the same run goes on to the same bits.

    Example:
        >>> options = cmidd.DistillOptions(ipc=2, iterations=3)
        >>> network = cmidd.DMOptions("convnet:width=8")
        >>> run = cmidd.prepare("dm", cmidd.load_dataset("digits"), options, network)
        >>> result = cmidd.distill(run, run.folder("runs/dm"))
        >>> result.images.shape, result.record["method"]
        (torch.Size([20, 1, 8, 8]), 'dm')
    """
    with ranks.only_first(folder.locked):
        if ranks.from_first(lambda: folder.finished):
            say(f"{folder.path} is finished already")
            return ranks.from_first(lambda: SyntheticSet.load(folder.result))
        if run.begun:
            raise RuntimeError(
                "run: its images have moved already; prepare another, and give its folder "
                "resume=True to go on from a checkpoint"
            )
        run.begun = True
        run.cmi.measure_real_means(say)
        with deferred() as stop:
            loop = Loop(run, folder, stop, say)
            loop.iterate()
            made = SyntheticSet.of(
                run.dataset, run.images.detach().cpu(), run.labels, loop.record(command)
            )
            result = run.method.finish(made)
            if ranks.is_first():
                result.save(folder.result)
        ranks.wait()  # until the file is there
        return result


class Loop:
    """A run under way."""

    def __init__(self, run: Run, folder: RunFolder, stop: Stop, say: Callable[[str], None]) -> None:
        """Set up what moves the images, and put the checkpoint back."""
        method, options = run.method, run.options
        self.run, self.folder, self.stop, self.say = run, folder, stop, say
        self.leaves = run.leaves
        rates = [options.lr_images, *(each.lr for each in method.extra_parameters.values())]
        self.optimizer = method.optimizer(
            [
                {"params": [leaf], "lr": lr}
                for leaf, lr in zip(self.leaves.values(), rates, strict=True)
            ],
            options.momentum,
        )
        self.scales: list[Tensor] = []
        if method.class_scale is not None:
            self.scales.append(method.class_scale[run.labels].to(run.images).view(-1, 1, 1, 1))
        if method.channel_scale is not None:
            self.scales.append(method.channel_scale.to(run.images).view(-1, 1, 1))
        self.made_with = dict(method.input_records)
        for term in run.terms:
            self.made_with |= term.input_records
        self.total = options.iterations * method.updates
        self.place = checkpoint.restore(folder, self.leaves, self.optimizer, method, self.made_with)
        if self.done:
            say(f"going on after {self.done} of {self.total} updates")
        elif folder.resume:
            say(f"no checkpoint in {folder.path} yet: it starts anew")
        self.first_line = ranks.from_first(lambda: read_log(folder.log_path)[:1])
        self.warnings = 0  # that were given

    @property
    def done(self) -> int:
        """Updates that are done."""
        return self.place.iteration * self.run.method.updates + self.place.update

    def iterate(self) -> None:
        """Do the updates that are left, and write what there is to write between them."""
        method, options, place = self.run.method, self.run.options, self.place
        with (
            ranks.only_first(partial(self.folder.logging, place.iteration)),
            progress(
                total=self.total,
                initial=self.done,
                desc=f"distilling with {self.run.method_name}",
                unit="update",
            ) as bar,
        ):
            while place.iteration < options.iterations:
                iteration, number = place.iteration, place.iteration + 1
                last = number == options.iterations
                reports = last or number % options.report_every == 0
                for update in range(place.update, method.updates):
                    self.end_if_asked()
                    logged = reports and update == method.updates - 1
                    loss, values = self.update(iteration, update, logged=logged)
                    place.losses.append(loss)
                    place.update = update + 1
                    bar.update()
                saves = last or number % options.checkpoint_every == 0
                if reports or saves:
                    ranks.wait()  # before a GPU is waited for, which would not notice one gone
                    numbers = self.numbers(values)
                    largest = self.check_finite(numbers)
                if reports:
                    self.report(iteration, numbers, bar)
                    self.warn(iteration, numbers, largest)
                place.iteration, place.update, place.losses = number, 0, []
                if saves:
                    self.save()

    def update(
        self, iteration: int, update: int, *, logged: bool
    ) -> tuple[Tensor, dict[Term, Tensor]]:
        """One step of the images; the method's loss and the weighted terms before it."""
        method, images = self.run.method, self.run.images
        if not update:
            method.constrain_images(images.detach())
        with record_function("draws"):
            draws = method.draw(iteration, update)
        loss, gradient = method.loss_and_gradient(images, draws)
        values = {}
        for term in self.run.terms:
            with record_function(term.name):
                values[term] = term.add(images, gradient, iteration, update, logged=logged)
        if ranks.count() > 1:
            with record_function("ranks"):
                loss, *shares = torch.stack([loss, *(value.to(loss) for value in values.values())])
                values = dict(zip(values, shares, strict=True))
                extra = [each.tensor.grad for each in method.extra_parameters.values()]
                there = [each for each in extra if each is not None]
                ranks.add_up(loss, *shares, gradient, *there)
        with record_function("images_step"):
            images.grad = math.prod(self.scales, start=gradient)
            method.take_step(self.optimizer, images, loss)
            method.constrain()
        return loss, values

    def end_if_asked(self) -> None:
        """Save what there is and end, if a signal asked any rank for it."""
        if ranks.any_of(self.stop.asked):
            self.check_finite({})
            self.save()
            raise self.stop.interruption(
                f"interrupted after {self.done} of {self.total} updates, which {self.folder.path} "
                "keeps"
            )

    def numbers(self, values: Mapping[Term, Tensor]) -> dict[str, float]:
        """What the log says of the iteration under way, after its last update."""
        found = {"loss": torch.stack(self.place.losses).mean().item()}
        weighted = {term: value.item() for term, value in values.items() if term.weight_of_mean}
        found |= {term.name: value / term.weight_of_mean for term, value in weighted.items()}
        found |= {name: n.item() for name, n in self.run.method.log_values().items()}
        return found | {f"weighted_{term.name}": value for term, value in weighted.items()}

    def report(self, iteration: int, numbers: Mapping[str, float], bar: Any) -> None:
        """Write a line of the log."""
        if not ranks.is_first():
            return
        self.folder.log(iteration, numbers)
        shown = {
            name: f"{n:.4g}" for name, n in numbers.items() if not name.startswith("weighted_")
        }
        bar.set_postfix(shown)

    def warn(self, iteration: int, numbers: dict[str, float], largest: float) -> None:
        """Say once where the run diverges."""
        self.first_line = self.first_line or [numbers]
        signs = signs_of_divergence(largest, [*self.first_line, numbers])
        if len(signs) > self.warnings:
            self.warnings = len(signs)
            self.say(
                f"warning: iteration {iteration}: {', and '.join(signs)}; "
                f"{' or '.join(self.suspects(with_values=True))} may be too large"
            )

    def save(self) -> None:
        """Write a checkpoint, from which the run goes on to the same bits."""
        about = {
            **self.run.dataset.describe(),
            **_view_record(self.run.method),
            "made_with": self.made_with,
        }
        checkpoint.save(
            self.folder, self.place, self.leaves, self.optimizer, self.run.method, about
        )

    def check_finite(self, numbers: Mapping[str, float]) -> float:
        """The largest value of the images; raise before anything NaN is logged or saved."""
        largest = {
            f"largest of {name}": leaf.detach().abs().max().item()
            for name, leaf in self.leaves.items()
        }
        found = {**numbers, **largest}
        if not all(math.isfinite(number) for number in found.values()):
            text = ", ".join(f"{name} {number:g}" for name, number in found.items())
            kept = f"; --init=file:{self.folder.checkpoint} starts from the last good images"
            raise FloatingPointError(
                f"iteration {self.place.iteration}: {text}. The steps are too long: take a smaller "
                f"{' or '.join(self.suspects())}, and another folder"
                f"{kept if self.folder.has_checkpoint else ''}"
            )
        return largest["largest of images"]

    def suspects(self, *, with_values: bool = False) -> list[str]:
        """Options that can make a run diverge."""
        names = [*(f"lr_{name}" for name in self.leaves), *self.run.method.options_that_may_diverge]
        weights = {f"{term.name}_weight": term.weight for term in self.run.terms if term.weight}
        names += weights
        if not with_values:
            return names
        values = {**vars(self.run.options), **vars(self.run.method_options), **weights}
        given = {name: values.get(name) for name in names}
        return [f"{k} {v:g}" if isinstance(v, int | float) else k for k, v in given.items()]

    def record(self, command: str) -> dict[str, Any]:
        """What the result says of itself."""
        run = self.run
        return {
            "ipc": run.options.ipc,
            "method": run.method_name,
            "network": run.method.network_spec,
            "evaluation": evaluation_of(run.method_name, run.dataset, run.options.ipc),
            **_view_record(run.method),
            "made_with": self.made_with,
            **{f"{term.name}_weight": term.weight for term in run.terms},
            "seed": run.options.seed,
            "command": command,
            "config": self.folder.config,
            "versions": versions(),
        }


def _view_record(method: Method) -> dict[str, Any]:
    return {} if method.view is None else {"view": method.view.as_record()}
