"""The recovery of a set: teachers are read, and batches are made into a file that grows.

The file is a synthetic set once it is complete (`stored_pixels.py`). A batch is an item of it, so
memory follows the batch. Everything that is drawn for one is a function of seed, batch and step.
So any number of processes make batches, in any order, and what a kill takes away is made again to
the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cmidd import ranks
from cmidd.datasets import Dataset
from cmidd.device import usable_device
from cmidd.interruption import Stop, deferred
from cmidd.options.recover import RecoverCMIOptions, RecoverOptions
from cmidd.pretrained.bank import Bank
from cmidd.pretrained.teachers import load_teachers
from cmidd.progress import progress
from cmidd.recovery.batch import Batch, Task
from cmidd.recovery.batches import Batches
from cmidd.recovery.checks import check_cmi, check_fits, check_teachers
from cmidd.recovery.class_statistics import (
    ClassStatistics,
    channels_of,
    measure,
    statistics_file,
)
from cmidd.recovery.published import evaluation_of, settled
from cmidd.regularization import with_chunk
from cmidd.run import run_folder
from cmidd.storage.growing_file import GrowingFile
from cmidd.storage.run_folder import RunFolder, versions
from cmidd.storage.shared_filling import complete, fill_together, locked_soon
from cmidd.storage.tensor_file import record_of
from cmidd.stored_pixels import as_items
from cmidd.synthetic import KIND
from cmidd.teaching import checksums

METHOD = "recover"
"""What records and folders call it."""


@dataclass(frozen=True, eq=False)
class Recovery:
    """A recovery that is settled and set up."""

    task: Task
    batches: Batches
    filled_in: str
    """What was not given and is known, and where it comes from, in words for the user."""
    made_with: dict[str, Any]
    """What tells the files apart that it reads."""

    @property
    def options(self) -> RecoverOptions:
        """Its options, filled in."""
        return self.task.options

    def batch(self, item: int, of_classes: ClassStatistics | None = None) -> Batch:
        """A batch with its first images."""
        return Batch(self.task._replace(of_classes=of_classes), item, *self.batches[item])

    def folder(
        self, path: Path | str, *, resume: bool = False, asked: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """The folder of this recovery, new or, with `resume`, begun before."""
        task = self.task
        return folder_of(path, task.dataset, task.options, task.cmi, resume=resume, asked=asked)

    def record(self) -> dict[str, Any]:
        """What the result says of itself."""
        dataset, options = self.task.dataset, self.options
        network = record_of(options.teacher[0]).get("network")
        return {
            **dataset.describe(),
            "class_names": list(dataset.class_names),
            "ipc": options.ipc,
            "method": METHOD,
            **({} if network is None else {"network": network}),
            "evaluation": evaluation_of(dataset),
            "made_with": self.made_with,
            "cmi_weight": self.task.cmi.cmi_weight,
            "seed": options.seed,
        }

    def items(self) -> dict[str, Tensor]:
        """What the file keeps of a batch, without memory."""
        pixels = torch.empty(
            self.batches.largest, *self.task.dataset.shape, dtype=torch.uint8, device="meta"
        )
        labels = torch.empty(self.batches.largest, dtype=torch.int64, device="meta")
        number = torch.empty((), device="meta")
        return {"pixels": pixels, "labels": labels, "loss": number, "cmi": number}


def folder_of(
    path: Path | str,
    dataset: Dataset,
    options: RecoverOptions,
    cmi: RecoverCMIOptions,
    *,
    resume: bool = False,
    asked: Mapping[str, Any] | None = None,
) -> RunFolder:
    """The folder of a recovery with these options, which are settled."""
    parts = (options, cmi)
    return run_folder(path, METHOD, dataset, parts, resume=resume, asked=asked, may_grow=())


def prepare_recovery(
    dataset: Dataset,
    options: RecoverOptions,
    cmi: RecoverCMIOptions | None = None,
    device: torch.device | str | None = None,
) -> Recovery:
    """Fill in what is published, read the teachers, and check that they serve.

    Args:
        dataset: the real images.
        options: of the recovered images.
        cmi: the regulariser; default: none.
        device: default: a GPU where there is one.
    """
    if dataset.whitening is not None:
        raise ValueError(
            "dataset: expected images that are not whitened, as recovered ones are kept in the "
            "range of pixels"
        )
    place, cmi = usable_device(device), cmi or RecoverCMIOptions()
    cmi.check()
    cmi = with_chunk(cmi, place, dataset.shape.height, is_used=cmi.cmi_weight != 0)
    options, filled_in = settled(dataset, options, place)
    check_fits(dataset, options)
    batches = Batches(dataset.num_classes, options.ipc, options.batch_size, options.order)
    check_cmi(batches, options, cmi)
    teachers = load_teachers([Path(file) for file in options.teacher], dataset, place)
    check_teachers(teachers, dataset, options, place)
    bank = None if cmi.bank is None else Bank.load_for(dataset, cmi.bank, "bank", place)
    made_with: dict[str, Any] = {
        "teacher": {
            "networks": len(teachers),
            "checksums": checksums(teachers),
        }
    }
    if bank is not None:
        made_with["bank"] = bank.record
    task = Task(dataset, options, cmi, teachers, bank, None, place)
    task.regularizers()  # so that a layer that is none is known now
    return Recovery(task, batches, filled_in, made_with)


def recover(
    recovery: Recovery,
    folder: RunFolder,
    command: str = "",
    say: Callable[[str], None] = tqdm.write,
) -> Path | None:
    """Make the batches that are missing; the file of the set, or None where others still make some.

    Args:
        recovery: from `prepare_recovery`.
        folder: from `Recovery.folder`, where everything is written. Several processes may go on
            with one at once.
        command: that makes the same again, for the record.
        say: told the batches, and each that is done.

    Example:
        >>> data = cmidd.load_dataset("digits")
        >>> teacher = cmidd.BankOptions("resnet18:width=4,norm=batch", networks=1, epochs=1)
        >>> bank = cmidd.train_bank("runs/teacher.safetensors", data, teacher)
        network 1 of 1: ...% of test images right
        >>> options = cmidd.RecoverOptions(("runs/teacher.safetensors",), ipc=2, iterations=2)
        >>> recovery = cmidd.prepare_recovery(data, options)
        >>> path = cmidd.recover(recovery, recovery.folder("runs/recover"))
        1 batch of up to 20 images: 10 classes with 2 of each
        batch 1 of 1: loss ...
        >>> cmidd.SyntheticSet.load(path).images.shape
        torch.Size([20, 1, 8, 8])

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the batch under way begins anew when it goes on.
    """
    if ranks.from_first(lambda: folder.finished):
        say(f"{folder.path} is finished already")
        return folder.result
    growing = ranks.from_first(partial(_begin, recovery, folder, command))
    say(recovery.batches.in_words())
    of_classes = _class_statistics(recovery, folder, say)
    _fill(recovery, growing, of_classes, say)
    ranks.wait()
    left = ranks.from_first(lambda: len(growing.missing()))
    if left:
        say(f"other processes still make {left} of {len(recovery.batches)} batches")
        return None
    ranks.from_first(partial(_complete, growing, folder))
    return folder.result


def _begin(recovery: Recovery, folder: RunFolder, command: str) -> GrowingFile:
    """The file, with the folder made this recovery's."""
    with locked_soon(folder.path, folder=True):
        folder.begin()
        return GrowingFile(
            folder.result,
            KIND,
            recovery.record(),
            len(recovery.batches),
            recovery.items(),
            resume=True,
            what="recovered set",
            lower="ipc",
            noted={"command": command, "config": folder.config, "versions": versions()},
        )


def _complete(growing: GrowingFile, folder: RunFolder) -> None:
    with locked_soon(folder.path, folder=True):
        complete(growing)


def _class_statistics(
    recovery: Recovery, folder: RunFolder, say: Callable[[str], None]
) -> ClassStatistics | None:
    """The statistics of classes, measured as far as they are not yet."""
    task, options = recovery.task, recovery.options
    if not (options.class_statistics and options.bn_weight and options.iterations):
        return None
    channels = [channels_of(teacher, task.dataset, task.device) for teacher in task.teachers]
    path = folder.path / "statistics.safetensors"

    def begin() -> GrowingFile:
        with locked_soon(folder.path, folder=True):
            return statistics_file(path, task.dataset, channels, recovery.made_with["teacher"])

    growing = ranks.from_first(begin)
    missing = growing.missing()
    if missing:
        say(f"statistics of the real images of {len(missing)} classes")
        with progress(total=len(missing), desc="statistics", unit="class") as bar:

            def make(c: int) -> dict[str, Tensor]:
                bar.total = bar.n + len(growing.missing())
                found = measure(task.dataset, task.teachers, c, task.device, options.precision)
                bar.update()
                return found

            def waiting(c: int, holder: str) -> None:
                say(f"waiting for class {task.dataset.class_names[c]}, measured by {holder}")

            fill_together(growing, make, _turned(missing), wait=True, waiting=waiting)
    _complete(growing, folder)
    return ClassStatistics(path, channels)


def _fill(
    recovery: Recovery,
    growing: GrowingFile,
    of_classes: ClassStatistics | None,
    say: Callable[[str], None],
) -> None:
    """Make the batches that no other process makes."""
    missing, count = growing.missing(), len(recovery.batches)
    if len(missing) < count:
        say(f"{count - len(missing)} of {count} batches are there already")
    steps = max(1, recovery.options.iterations)
    with (
        deferred() as stop,
        progress(total=len(missing) * steps, desc="recovering", unit="step") as bar,
    ):

        def make(item: int) -> dict[str, Tensor]:
            bar.total = bar.n + len(growing.missing()) * steps  # less what others made
            made = _made(recovery, item, of_classes, bar, stop, growing)
            say(
                f"batch {item + 1} of {count}: loss {made['loss'].item():.4g}"
                + (f", CMI {made['cmi'].item():.4g}" if recovery.task.cmi.cmi_weight else "")
            )
            return made

        fill_together(growing, make, _turned(missing))


def _made(
    recovery: Recovery,
    item: int,
    of_classes: ClassStatistics | None,
    bar: Any,
    stop: Stop,
    growing: GrowingFile,
) -> dict[str, Tensor]:
    """A batch as the file keeps it, with loss and CMI before its last step."""
    batch, loss, cmi = recovery.batch(item, of_classes), torch.zeros(()), torch.zeros(())
    for number in range(recovery.options.iterations):
        if stop.asked:
            done = len(recovery.batches) - len(growing.missing())
            raise stop.interruption(f"interrupted after {done} of {len(recovery.batches)} batches")
        loss, _, _, cmi = batch.step(number)
        bar.update()
    if not recovery.options.iterations:
        bar.update()
    kept = as_items(batch.pixels(), batch.labels.cpu(), recovery.batches.largest)
    return {**kept, "loss": loss.detach().float().cpu(), "cmi": cmi.detach().float().cpu()}


def _turned(items: Sequence[int]) -> list[int]:
    """The items from this rank's share on, and then those before it."""
    first = ranks.share_of(len(items)).start
    return [*items[first:], *items[:first]]
