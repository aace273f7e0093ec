"""The one timing harness: contenders take turns on one clock, beside what the machine can do.

Every contender runs once a round, in one process, so that all of them see the same machine. What a
call allocates is inside its time, what it frees afterwards is not. Bytes that must move, s being
the element size (a copy of the features moves as many as value+gradient, so a copy is the floor):

    value             N M s
    value+gradient  2 N M s
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

COPY, FRESH_COPY = "copy", "copy, fresh"
EXP, FRESH_EXP = "exp, out=", "exp"

# Small inputs are rotated over buffers of this size together, so that caches do not keep them: on a
# GPU over several L2 caches, for which tiny inputs need many buffers.
_ROTATED_BYTES, _MOST_INPUTS = 16 << 20, 8
_ROTATED_L2_CACHES, _MOST_GPU_INPUTS = 3, 2048


@dataclass(frozen=True)
class Contender:
    """What is timed, and what is done before each time with the clock stopped."""

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and the 20 and 80 % points over the samples taken."""

    median: float
    low: float
    high: float
    samples: int
    others: float | None  # share of the cores that other processes took meanwhile; None: unknown

    def __truediv__(self, calls: int) -> Timing:
        """Of each call, where so many were timed as one."""
        median, low, high = (seconds / calls for seconds in (self.median, self.low, self.high))
        return replace(self, median=median, low=low, high=high)

    def figures(self) -> dict[str, float | int | None]:
        """The columns that a row of a record has of it."""
        seconds = {"seconds": self.median, "p20": self.low, "p80": self.high}
        short = {name: four_digits(number) for name, number in seconds.items()}
        return {**short, "samples": self.samples, "others": self.others}


def four_digits(number: float) -> float:
    """Round as results are recorded."""
    return float(f"{number:.4g}")


def race(
    contenders: Mapping[str, Contender],
    *,
    budget: float,
    device: torch.device | str = "cpu",
    calls: int = 1,
    rounds: tuple[int, int] = (5, 2000),
) -> dict[str, Timing]:
    """Time contenders in turn, round after round, for about `budget` seconds.

    Args:
        contenders: by name; run in this order every round.
        budget: seconds for all of them together; at least `rounds[0]` rounds are run.
        device: where they run; on a GPU events on its stream are the clock.
        calls: runs in one sample, for what is too short to be timed alone. `prepare` is then
            called once for all of them.
        rounds: fewest and most.
    """
    clock = _gpu_clock if torch.device(device).type == "cuda" else _cpu_clock
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():  # warm up: caches, allocator, threads
        for _ in range(2):
            contender.run(contender.prepare())
    collecting = gc.isenabled()
    gc.disable()
    try:
        cores = _core_seconds()
        start = time.perf_counter()
        for done in itertools.count():
            late = time.perf_counter() - start > budget
            if done >= rounds[1] or (late and done >= rounds[0]):
                break
            for name, contender in contenders.items():
                samples[name].append(clock(contender, calls))
    finally:
        if collecting:
            gc.enable()
    others = _others(cores, _core_seconds())
    return {name: _summary(seconds, others) for name, seconds in samples.items()}


def _cpu_clock(contender: Contender, calls: int) -> float:
    prepared = contender.prepare()
    start = time.perf_counter()
    for _ in range(calls - 1):
        contender.run(prepared)
    result = contender.run(prepared)
    seconds = time.perf_counter() - start
    del result  # freed with the clock stopped
    return seconds / calls


def _gpu_clock(contender: Contender, calls: int) -> float:
    prepared = contender.prepare()
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        contender.run(prepared)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / calls


def _summary(seconds: list[float], others: float | None) -> Timing:
    ordered = sorted(seconds)

    def point(share: float) -> float:
        return ordered[round(share * (len(ordered) - 1))]

    return Timing(statistics.median(ordered), point(0.2), point(0.8), len(ordered), others)


def _core_seconds() -> tuple[float, float, float] | None:
    """Core-seconds since start: passed, busy, busy with this process; None off Linux."""
    try:
        with open("/proc/stat") as file:
            fields = file.readline().split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() * (os.cpu_count() or 1), busy, sum(os.times()[:2])


def _others(
    before: tuple[float, float, float] | None, after: tuple[float, float, float] | None
) -> float | None:
    if before is None or after is None:
        return None
    passed, busy, own = (end - start for start, end in zip(before, after, strict=True))
    return round(max(0.0, busy - own) / passed, 3)


def random_features(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str, spread: float = 1.0
) -> list[Tensor]:
    """Leaves that require a gradient: one if large, several to be taken in turn if small.

    Entries are normal numbers of that spread, so that KL is about half its square.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(0)
    size = max(1, torch.Size(shape).numel() * dtype.itemsize)
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        count = min(_MOST_GPU_INPUTS, _ROTATED_L2_CACHES * cache // size)
    else:
        count = min(_MOST_INPUTS, _ROTATED_BYTES // size)
    drawn = (torch.randn(shape, generator=generator, device=device) for _ in range(max(1, count)))
    return [features.mul_(spread).to(dtype).requires_grad_() for features in drawn]


def floors(inputs: Iterable[Tensor]) -> dict[str, Contender]:
    """Give what the machine itself does with the same features: copy them, take `torch.exp`."""
    plain = [features.detach() for features in inputs]
    turns = itertools.cycle([(features, torch.empty_like(features)) for features in plain])
    runs: dict[str, Callable[[tuple[Tensor, Tensor]], Tensor]] = {
        COPY: lambda pair: pair[1].copy_(pair[0]),
        FRESH_COPY: lambda pair: pair[0].clone(),
        EXP: lambda pair: torch.exp(pair[0], out=pair[1]),
        FRESH_EXP: lambda pair: torch.exp(pair[0]),
    }
    return {name: Contender(run, lambda: next(turns)) for name, run in runs.items()}
