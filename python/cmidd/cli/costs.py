"""What a run costs in time, memory and disk, measured on its own first updates before it starts.

Nothing that a run draws depends on what was computed before, so trying an update changes nothing.
The first one pays for what is made once and is not counted; the second of an iteration stands for
all that follow it, as DC trains its network before each of them.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cmidd.datasets import Dataset
from cmidd.distill import DistillOptions
from cmidd.methods import method_entry, settle
from cmidd.methods.base import Method
from cmidd.regularization import CMIOptions, Regularization
from cmidd.storage.tensor_file import in_words
from cmidd.synthetic import start

_LINE = 300  # bytes of a line of both logs


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    seconds: float  # an iteration
    iterations: int
    memory: int  # bytes at the peak: of the process, or on the GPU
    disk: int  # bytes

    def __str__(self) -> str:
        whole = duration(self.seconds * self.iterations)
        return (
            f"about {duration(self.seconds)} an iteration, {whole} for {self.iterations:,}; "
            f"memory {in_words(self.memory)}, disk {in_words(self.disk)}"
        )


def estimate(
    method_name: str,
    dataset: Dataset,
    options: DistillOptions,
    cmi: CMIOptions,
    method_options: Any,
    device: torch.device,
) -> Cost:
    """Try up to three updates of a run; arguments as of `distill`."""
    options, method_options, _ = settle(method_name, dataset, options, method_options)
    assert options.iterations is not None
    assert options.report_every is not None
    assert options.init is not None
    images, labels = start(dataset, options.ipc, options.init, options.seed)
    images = images.to(device).requires_grad_()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    entry = method_entry(method_name)
    method = entry.make(dataset, labels, method_options, options.seed, device)
    # Centroids of real images take a pass over all of them, and no other time than one's own.
    tried = replace(cmi, cmi_centroids="own") if options.ipc > 1 and cmi.bank else cmi
    regularization = Regularization(
        method_name, dataset, labels, options.seed, tried, device, lambda _: None, method.rows(0)
    )
    _timed(method, regularization, images, 0)
    seconds, of_cmi = _timed(method, regularization, images, 0)
    if method.updates > 1:
        seconds += (method.updates - 1) * _timed(method, regularization, images, 1)[0]
    seconds += method.updates * of_cmi / cmi.cmi_every
    made = sum(leaf.nbytes for leaf in (images, *(each.tensor for each in method.learned.values())))
    lines = options.iterations // options.report_every
    disk = 3 * made + lines * _LINE  # the result, the last checkpoint with its momentum, the log
    if dataset.whitening is not None:
        disk += dataset.whitening.matrix.nbytes
    return Cost(seconds, options.iterations, _peak(device), disk)


def _timed(
    method: Method, regularization: Regularization, images: Tensor, update: int
) -> tuple[float, float]:
    """Seconds of one update of the first iteration, and of its CMI."""
    began = time.perf_counter()
    _, gradient = method.step(images, 0, update)
    gradient.sum().item()  # waits for a GPU
    between = time.perf_counter()
    regularization.add(images, gradient, 0, method.rows(0), logged=False)
    gradient.sum().item()
    return between - began, time.perf_counter() - between


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """For people: two digits of the unit that suits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length or unit == "s":
            number = seconds / length
            return f"{number:.0f} {unit}" if number > 99 else f"{number:.2g} {unit}"
    raise AssertionError
