"""The parts of a step, by the names that a loop gives them with `torch.profiler.record_function`.

A part's seconds are those that its ranges last on a CPU, or those of the kernels that were launched
meanwhile on a GPU, by whichever thread. Ranges inside another one are no parts of their own. How
much of a part are convolutions is counted in the same way. The profiler slows what it sees, most of
all many small operations; whole steps are timed without it.
"""

from __future__ import annotations

import bisect
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Event = dict[str, Any]

REST = "rest"

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


@dataclass(frozen=True)
class Part:
    """Seconds of a part, and of the convolutions in it."""

    seconds: float = 0.0
    convolutions: float = 0.0

    def __add__(self, other: Part) -> Part:
        """One after the other."""
        return Part(self.seconds + other.seconds, self.convolutions + other.convolutions)

    def __mul__(self, times: int) -> Part:
        """So many times."""
        return Part(self.seconds * times, self.convolutions * times)


Parts = dict[str, Part]


def profiled(calls: Iterator[Callable[[], object]], budget: float, most: int = 3) -> Parts:
    """Medians over some of the calls: one at least, and no more once `budget` seconds are over."""
    found: list[Parts] = []
    start = time.perf_counter()
    while not found or (len(found) < most and time.perf_counter() - start < budget):
        found.append(parts_of(trace_of(next(calls))))
    return {
        name: Part(
            statistics.median(parts.get(name, Part()).seconds for parts in found),
            statistics.median(parts.get(name, Part()).convolutions for parts in found),
        )
        for name in dict.fromkeys(name for parts in found for name in parts)
    }


def trace_of(call: Callable[[], object]) -> list[Event]:
    """Make the call and give its trace, the GPU's part included where there is a GPU.

    The profiler's hooks stay in the process and slow later launches, so time comes before this.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[Event] = json.loads(path.read_text())["traceEvents"]
    return events


def parts_of(events: Iterable[Event]) -> Parts:
    """Sum the ranges of a trace; what is in none of them is `REST`."""
    timed = [event for event in events if "ts" in event and "dur" in event]
    ranges = _outermost(event for event in timed if event.get("cat") == "user_annotation")
    convolutions = _outermost(event for event in timed if event["name"] in _CONVOLUTIONS)
    kernels = [event for event in timed if event.get("cat") in _ON_DEVICE]
    found: Parts = {}

    def add(at: float, microseconds: float, in_convolutions: float) -> None:
        name = _covering(ranges, at) or REST
        found[name] = found.get(name, Part()) + Part(microseconds / 1e6, in_convolutions / 1e6)

    if kernels:
        launched = {
            event["args"]["correlation"]: event["ts"]
            for event in timed
            if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
        }
        for event in kernels:
            at, lasts = launched.get(event["args"]["correlation"], -1.0), event["dur"]
            add(at, lasts, lasts if _covering(convolutions, at) else 0.0)
        return found
    for event in ranges:
        add(event["ts"], event["dur"], 0.0)
    for event in convolutions:
        add(event["ts"], 0.0, event["dur"])
    seen = [event for event in timed if event.get("cat") in ("cpu_op", "user_annotation")]
    if seen:
        span = max(event["ts"] + event["dur"] for event in seen) - min(e["ts"] for e in seen)
        add(-1.0, max(0.0, span - sum(event["dur"] for event in ranges)), 0.0)
    return found


def _outermost(events: Iterable[Event]) -> list[Event]:
    """Those that begin when none before is still going on, in order."""
    found: list[Event] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if not found or event["ts"] >= found[-1]["ts"] + found[-1]["dur"]:
            found.append(event)
    return found


def _covering(events: list[Event], at: float) -> str | None:
    """Name of the event that goes on at a time; `events` are ordered and do not overlap."""
    place = bisect.bisect_right(events, at, key=lambda event: float(event["ts"])) - 1
    if place < 0 or at >= events[place]["ts"] + events[place]["dur"]:
        return None
    return str(events[place]["name"])
