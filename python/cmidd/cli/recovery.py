"""`cmidd recover`, and what it costs, measured on a few steps of its own first batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cmidd import ranks
from cmidd.cli.costs import duration, peak
from cmidd.cli.data import load
from cmidd.cli.flags import command_line
from cmidd.datasets import Dataset
from cmidd.device import usable_device
from cmidd.options.evaluation import EvaluateOptions
from cmidd.options.recover import (
    RecoverCMIOptions,
    RecoverDataOptions,
    RecoverOptions,
    RecoverRunOptions,
)
from cmidd.recovery.published import settled
from cmidd.recovery.recover import Recovery, folder_of, prepare_recovery, recover
from cmidd.regularization import with_chunk
from cmidd.storage.lock import busy_first
from cmidd.storage.output import in_words
from cmidd.storage.run_folder import check_folder

_TRIED = 3  # steps that are counted, after one that pays for what is made once


def run_recover(
    data: RecoverDataOptions,
    run: RecoverRunOptions,
    options: RecoverOptions,
    cmi: RecoverCMIOptions,
) -> None:
    """Recover images, and say what to do with them."""
    command = command_line("recover", (data, run, options, cmi))
    if ranks.is_first() and not run.dry_run:
        with busy_first(run.out, folder=True):
            check_folder(run.out, resume=run.resume)
    dataset = load(data)
    asked = {**asdict(data), "held_out": dataset.held_out}
    if run.resume and _is_finished(run, dataset, options, cmi, data.device, asked):
        print(f"{run.out} is finished already")
        made: Path | None = run.out / "result.safetensors"
    else:
        recovery = prepare_recovery(dataset, options, cmi, data.device)
        if recovery.filled_in:
            print(f"not given, so as known: {recovery.filled_in}")
        if run.dry_run:
            print(recovery.batches.in_words(), cost_of_recovery(recovery), sep="\n")
            return
        folder = recovery.folder(run.out, resume=run.resume, asked=asked)
        made = recover(recovery, folder, command)
    if made is not None:
        evaluation = EvaluateOptions(sets=(made,), out=run.out / "evaluation.json")
        print(f"the synthetic set: {made}")
        print("try it:", command_line("evaluate", (data, evaluation)))


def _is_finished(
    run: RecoverRunOptions,
    dataset: Dataset,
    options: RecoverOptions,
    cmi: RecoverCMIOptions,
    device: str | None,
    asked: Mapping[str, Any],
) -> bool:
    """Whether the result is there, which then needs no teacher any more."""
    if run.dry_run or not ranks.from_first(lambda: (run.out / "config.yaml").exists()):
        return False
    place = usable_device(device)
    options, _ = settled(dataset, options, place)
    cmi = with_chunk(cmi, place, dataset.shape.height, is_used=cmi.cmi_weight != 0)
    folder = folder_of(run.out, dataset, options, cmi, resume=True, asked=asked)
    return ranks.from_first(lambda: folder.finished)


def cost_of_recovery(recovery: Recovery) -> str:
    """In words, what a recovery costs: its batches, one after another, in this process.

    The pass over the real images for the statistics of classes is not counted.
    """
    device, options = recovery.task.device, recovery.options
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    task = recovery.task._replace(options=replace(options, class_statistics=0.0))
    began = time.perf_counter()
    batch = replace(recovery, task=task).batch(0)
    batch.images.sum().item()  # waits for a GPU
    first = time.perf_counter() - began
    times = [time.perf_counter()]
    for number in range(min(options.iterations, 1 + _TRIED)):
        batch.step(number).total.item()
        times.append(time.perf_counter())
    counted = times[1:] if len(times) > 2 else times
    step = (counted[-1] - counted[0]) / max(1, len(counted) - 1)
    of_batch = first + options.iterations * step
    disk = sum(each.nbytes for each in recovery.items().values()) * len(recovery.batches)
    return (
        f"about {duration(step)} a step, {duration(of_batch)} a batch, "
        f"{duration(of_batch * len(recovery.batches))} in all; memory {in_words(peak(device))}, "
        f"disk {in_words(disk)}"
    )
