"""What a run costs in time, memory and disk, measured on its own first updates before it starts.

Nothing that a run draws depends on what was computed before, and a method's state is put back, so
trying an update changes nothing. The first one pays for what is made once and is not counted; the
second of an iteration stands for all that follow it, as DC trains its network before each of them.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from cmidd.pretrained.bank import Bank
from cmidd.run import Run
from cmidd.storage.output import in_words

_LINE = 300  # bytes of a line of both logs


@dataclass(frozen=True)
class Cost:
    """Time, memory and disk of one run."""

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


def estimate(run: Run) -> Cost:
    """Try up to three updates of a run.

    Class means of real images take a pass over all of them, and CMI with them no other time than
    without: they are not measured for this unless CMI would be 0.
    """
    method, options = run.method, run.options
    device = run.images.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if run.cmi.is_zero_so_far:
        run.cmi.measure_real_means(lambda _: None)
    state = {name: tensor.clone() for name, tensor in method.state().items()}
    _timed(run, 0)
    seconds, of_cmi = _timed(run, 0)
    if method.updates > 1:
        seconds += (method.updates - 1) * _timed(run, 1)[0]
    method.load_state(state)
    seconds += method.updates * of_cmi / run.cmi_options.cmi_every
    memory = peak(device) + _growth(run)
    return Cost(seconds, options.iterations, memory, disk_of(run))


def disk_of(run: Run) -> int:
    """Bytes of a run's files: result, checkpoint with two states of an optimizer at most, log.

    A method's state counts twice, as a checkpoint stays until the next one is written.
    """
    made = sum(leaf.nbytes for leaf in run.leaves.values())
    lines = run.options.iterations // run.options.report_every
    disk = 4 * made + lines * _LINE
    disk += 2 * run.method.state_bytes(run.options.iterations)
    if run.dataset.whitening is not None:
        disk += run.dataset.whitening.matrix.nbytes
    return disk


def _growth(run: Run) -> int:
    """Bytes by which a run grows after its first iteration: a method's state, networks of banks.

    A checkpoint takes a copy of the state, and on a CPU as many bytes again for the file.
    """
    method, copies = run.method, 3 if run.images.device.type == "cpu" else 2
    state = copies * max(0, method.state_bytes(run.options.iterations) - method.state_bytes(1))
    return state + sum(bank.to_come for bank in Bank.opened)


def _timed(run: Run, update: int) -> tuple[float, float]:
    """Seconds of one update of the first iteration, InfoNCE included, and of its CMI."""
    began = time.perf_counter()
    _, gradient = run.method.loss_and_gradient(run.images, run.method.draw(0, update))
    run.infonce.add(run.images, gradient, 0, update, logged=False)
    gradient.sum().item()  # waits for a GPU
    between = time.perf_counter()
    run.cmi.add(run.images, gradient, 0, update, logged=False)
    gradient.sum().item()
    return between - began, time.perf_counter() - between


def peak(device: torch.device) -> int:
    """Bytes of memory at the peak so far: on the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """For people: two digits of the unit that suits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:.0f} {unit}" if number > 99 else f"{number:.2g} {unit}"
    return f"{seconds:.0f} s" if seconds > 99 else f"{seconds:.2g} s"
